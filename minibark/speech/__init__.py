"""Above one utterance: long texts in pieces, and dialogs."""
