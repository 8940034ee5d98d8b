"""HTTP: OpenAI's speech endpoint in front of one Bark, and one page that speaks."""
