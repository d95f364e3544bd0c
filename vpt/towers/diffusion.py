"""Diffusion pipelines as backbones: prompts enter their text encoders and their context, nothing of them changes.

A prompt is encoded by the pipeline's own ``encode_prompt``, on a copy that has readers in place of its text encoders;
its network is asked by the pipeline's own ``__call__``, on a copy whose scheduler keeps the prediction. So chat
templates, masks, pooled states, packing and position ids are the library's, whatever the family.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpt.encode import advance
from vpt.prompt import Rows
from vpt.promptset import fingerprint
from vpt.tower import Stream, Tower
from vpt.towers.backbone import Backbone
from vpt.towers.context import join_context, open_context
from vpt.towers.encoders import Reader, Vocabulary, open_encoder
from vpt.towers.families import Family, family_of
from vpt.towers.frozen import forgetful
from vpt.towers.layered import cross_attentions, layered, sets_of
from vpt.towers.probe import Probe
from vpt.towers.tokens import PLACEHOLDER

__all__ = ["Diffusion", "open_pipeline"]

ENCODERS = {"text": "", "text_2": "_2", "text_3": "_3"}  # of a pipeline's text_encoder, text_encoder_2, ..
ASKED = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "return_dict": False}
OWN = (
    "prompt",
    "negative",
    "num_images",
    "num_videos",
    "device",
    "do_classifier",
    "lora_scale",
    "text_ids",
    "dtype",
)


@dataclass(frozen=True)
class Diffusion(Backbone):
    """A frozen diffusion pipeline.

    pipe: the library's own, untouched.  family: what it is called, and what is peculiar to it.
    towers: "text", "text_2", "text_3" (its text encoders), "context" (what its network's cross-attention reads),
        "image" (the VAE's encoder, which gives the moments of latents) and "denoiser".
    """

    draws: ClassVar[bool] = True

    pipe: Any = None
    family: Family = field(default_factory=lambda: Family(()))
    kind: str = ""
    kept: dict[str, dict[Any, Any]] = field(default_factory=dict)

    @property
    def encoders(self) -> dict[str, Tower]:
        """The towers that read text."""
        return {name: self.towers[name] for name in ENCODERS if name in self.towers}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the text encoders, which fix what rows mean: fine-tuned networks of the same family take the same rows."""
        return {name: fingerprint(tower) for name, tower in self.encoders.items()}

    @property
    def denoiser(self) -> Any:
        """The network that learns nothing: the U-Net or the transformer."""
        return self.towers["denoiser"].model

    def vectors(self, encoder: str, word: str) -> Tensor:
        """The frozen embeddings [n, width] of a word, as it stands within a sentence: where rows start."""
        tokenizer = self._tokenizer(encoder)
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        plain, said = (inner(text, add_special_tokens=False).input_ids for text in ("a", f"a {word}"))
        ids = torch.tensor(said[len(plain) :], device=self.towers[encoder].device)
        with torch.no_grad():
            return advance(self.towers[encoder], ids[None], {}, "embedded").x[0].float()

    def length(self, encoder: str) -> float:
        """The mean length of the encoder's word vectors; what learned rows are measured by."""
        table = _table(self.towers[encoder].model)
        return float(table.float().norm(dim=-1).mean())

    @property
    def cross_attentions(self) -> list[str]:
        """Names of the U-Net's cross-attentions; empty for a transformer."""
        return cross_attentions(self.denoiser)

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.pipe, f"tokenizer{ENCODERS[encoder]}")

    def vocabulary(self, encoder: str, slots: Mapping[str, int]) -> Vocabulary:
        """A copy of the encoder's tokenizer that knows these placeholders; kept."""
        known = self.kept.setdefault("vocabularies", {})
        key = (encoder, tuple(sorted(slots.items())))
        if key not in known:
            known[key] = Vocabulary.of(self._tokenizer(encoder), slots)
        return known[key]

    def embeds(
        self,
        prompt: str | Sequence[str],
        rows: Rows | None = None,
        *,
        negative: str | Sequence[str] | None = None,
        words: Mapping[str, str] | None = None,
        pipe: Any = None,
        guided: bool = True,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Keyword arguments with which any pipeline of the family draws these prompts.

        rows: by site.  words: what a placeholder is called where an encoder has no rows for it.  guided: with what
        classifier-free guidance needs.  pipe: another pipeline with the same encoders, such as image-to-image.
        strict: refuse a prompt that is longer than the context and lost a placeholder; else warn.
        Raises ValueError for a placeholder without rows.
        """
        rows, pipe = rows or {}, self.pipe if pipe is None else pipe
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        against = [negative] * len(prompts) if isinstance(negative, str) else list(negative or ()) or None
        self._refuse_unknown([*prompts, *(against or ())], rows, words or {})
        sets = sets_of(rows)
        asked, readers = self._readers(pipe, rows)
        if self.family.twice:
            if against is None and self.family.against is not None:
                against = [self.family.against] * len(prompts)
            elif (
                against is not None
                and "negative_prompt_embeds" not in inspect.signature(type(pipe).__call__).parameters
            ):
                raise ValueError(f"{type(pipe).__name__} takes no negative prompt. Leave it out.")
            given = self._encoded(asked, readers, prompts * sets, None, words or {}, False)
            if guided and against is not None:
                more = self._encoded(asked, readers, against * sets, None, words or {}, False)
                given |= {f"negative_{k}": v for k, v in more.items()}
        else:
            beside = None if against is None else against * sets
            given = self._encoded(asked, readers, prompts * sets, beside, words or {}, guided)
        self._count(readers, [*prompts, *((against or ()) if guided else ())], sets, strict)
        if sets > 1:
            given = {
                k: _side_by_side(v, sets) if k.endswith("prompt_embeds") else v[: len(prompts)]
                for k, v in given.items()
            }
        given = join_context(self.towers["context"], self.family, given, rows)
        takes = inspect.signature(type(pipe).__call__).parameters
        if "negative_prompt_embeds" in given and getattr(takes.get("negative_prompt"), "default", None) == "":
            given["negative_prompt"] = None  # the empty one of PixArt and Sana would be a second one
        return given

    def _refuse_unknown(self, texts: Iterable[str], rows: Rows, words: Mapping[str, str]) -> None:
        known = {site.slot for site in rows} | words.keys()
        for text in texts:
            for found in PLACEHOLDER.finditer(text):
                if f"<{found[1]}>" not in known:
                    there = ", ".join(sorted(slot for slot in known if slot.startswith("<"))) or "none"
                    raise ValueError(
                        f"{text!r} says <{found[1]}>, for which there are no rows; there are: {there}."
                    )

    def _readers(self, pipe: Any, rows: Rows) -> tuple[Any, dict[str, Reader]]:
        """A copy of the pipeline that reads through our loop."""
        asked, readers = copy.copy(pipe), {}
        for name, tower in self.encoders.items():
            own = {site: r for site, r in rows.items() if site.tower == name}
            slots = {site.slot: r.shape[-2] for site, r in own.items() if site.slot.startswith("<")}
            vocabulary, model = self.vocabulary(name, slots), getattr(pipe, f"text_encoder{ENCODERS[name]}")
            readers[name] = Reader(model, tower, vocabulary, own, self.kept.setdefault(name, {}))
            setattr(asked, f"text_encoder{ENCODERS[name]}", readers[name])
            setattr(asked, f"tokenizer{ENCODERS[name]}", vocabulary.tokenizer)
        return asked, readers

    def _encoded(
        self,
        asked: Any,
        readers: Mapping[str, Reader],
        prompts: list[str],
        against: list[str] | None,
        words: Mapping[str, str],
        guided: bool,
    ) -> dict[str, Any]:
        """What the pipeline's own ``encode_prompt`` gives, by the names that its ``__call__`` takes."""
        takes = inspect.signature(asked.encode_prompt).parameters
        defaults = inspect.signature(type(asked).__call__).parameters
        call: dict[str, Any] = {
            k: p.default
            for k, p in defaults.items()
            if k in takes and p.default is not p.empty and not k.startswith(OWN) and not k.endswith("embeds")
        }
        said: dict[str, Any] = {"device": next(iter(readers.values())).tower.device}
        said |= {
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            "do_classifier_free_guidance": guided,
        }
        for name, reader in readers.items():
            own = ENCODERS[name]
            said[f"prompt{own}"] = [reader.vocabulary.say(text, words) for text in prompts]
            if against is not None:
                said[f"negative_prompt{own}"] = [reader.vocabulary.say(text, words) for text in against]
        found = asked.encode_prompt(**{k: v for k, v in {**call, **said}.items() if k in takes})
        found = found if isinstance(found, tuple) else (found,)
        given = dict(zip(self.family.gives, found, strict=False))
        return {k: v for k, v in given.items() if k and v is not None and (guided or "negative" not in k)}

    def _count(self, readers: Mapping[str, Reader], texts: Sequence[str], sets: int, strict: bool) -> None:
        """Whether every placeholder was read; a long sentence loses its end."""
        for name, reader in readers.items():
            for slot in reader.vocabulary.rows:
                want = sets * sum(text.count(slot) for text in texts)
                if reader.seen[slot] < want:
                    told = (
                        f"a prompt is longer than {self.kind}'s {name!r} encoder reads, and lost {slot}. Shorten it, "
                        f"or say {slot} earlier."
                    )
                    if strict:
                        raise ValueError(told)
                    warnings.warn(told, stacklevel=3)

    @cached_property
    def _asked(self) -> tuple[Any, Any]:
        """A copy of the pipeline whose scheduler keeps what the network predicts."""
        asked = copy.copy(self.pipe)
        probe = Probe(self.pipe.scheduler)
        asked.scheduler = probe
        asked.set_progress_bar_config(disable=True)
        return asked, probe

    def predict(
        self,
        latents: Tensor,
        t: Tensor,
        given: Mapping[str, Any],
        size: tuple[int, int],
        *,
        network: Tower | None = None,
        layers: int = 1,
    ) -> Tensor:
        """The network's prediction for noisy latents, in the scheduler's terms, under autograd.

        latents: as the pipeline takes them.  t: timesteps [batch], in the scheduler's units.  given: of :meth:`embeds`,
        not guided.  size: height and width of the pictures, in pixels.  network: a denoiser that learns, in place of
        the frozen one.  layers: cross-attentions that have a context of their own, side by side in ``given`` (P+).
        """
        asked, probe = self._asked
        part = "unet" if hasattr(asked, "unet") else "transformer"
        learned = self.denoiser if network is None else network.model
        if getattr(asked, part) is not learned:
            setattr(asked, part, learned)
        probe.timesteps = t[None]
        call: Any = type(asked).__call__
        more = {
            "height": size[0],
            "width": size[1],
            "num_frames": 1,
            "use_resolution_binning": False,
            **ASKED,
            **self.family.call,
        }
        more = {k: v for k, v in more.items() if k in inspect.signature(call).parameters}
        with layered(learned, layers), forgetful(learned):
            call.__wrapped__(asked, **given, latents=latents, **more)
        found = probe.prediction  # FLUX.2 packs latents within its call
        return found if found.shape == latents.shape else found.transpose(1, 2).reshape(latents.shape)

    def latents(self, moments: Tensor, *, drawn: bool = True) -> Tensor:
        """Latents as the pipeline takes them, drawn from the moments that the image tower gives, or their mean."""
        mean, logvar = moments.chunk(2, dim=1) if self.towers["image"].traits["sampled"] else (moments, None)
        # noise is drawn in the order of memory, and convolutions choose a layout of their own
        mean = mean.contiguous()
        if drawn and logvar is not None:
            mean = mean + torch.exp(0.5 * logvar.contiguous().clamp(-30, 20)) * torch.randn_like(mean)
        return self.family.latents(self.pipe, mean)

    @cached_property
    def alphas(self) -> Tensor | None:
        """Of the noise schedule, the product [timesteps]; None where the scheduler matches flows."""
        from diffusers import DDPMScheduler

        return (
            None
            if self.prediction == "flow"
            else DDPMScheduler.from_config(self.pipe.scheduler.config).alphas_cumprod
        )

    @property
    def prediction(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", "sample" or "flow"."""
        config = self.pipe.scheduler.config
        flow = "FlowMatch" in type(self.pipe.scheduler).__name__ or config.get("use_flow_sigmas")
        kind = config.get("prediction_type", "epsilon")
        return "flow" if flow or kind == "flow_prediction" else kind


def _side_by_side(x: Tensor, sets: int) -> Tensor:
    """[sets * batch, length, width] to [batch, sets * length, width]."""
    return x.unflatten(0, (sets, -1)).transpose(0, 1).flatten(1, 2)


def open_pipeline(
    pipe: Any, name: str, options: Mapping[str, Any] | None = None, size: int | None = None
) -> Diffusion:
    """The backbone of a pipeline that is loaded already; frozen and in eval mode from here on.

    Raises ValueError for a family that vpt does not know.
    """
    kind, family = family_of(pipe)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    towers = {
        name: open_encoder(model, name)
        for name, own in ENCODERS.items()
        if (model := getattr(pipe, f"text_encoder{own}", None)) is not None
    }
    network = getattr(pipe, "unet", None) or pipe.transformer
    towers |= {"context": open_context(network), "denoiser": _closed("denoiser", network)}
    towers["image"] = _vae(pipe, family)
    side = size or _size(pipe, network)
    preprocessing = {
        "input_size": [3, side, side],
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return Diffusion(
        name, towers, preprocessing, "diffusers", options or {}, pipe=pipe, family=family, kind=kind
    )


def _size(pipe: Any, network: Any) -> int:
    """Side of the pictures that the network was trained on, in pixels."""
    config = network.config
    side = (
        config.get("sample_size") or config.get("sample_height") or getattr(pipe, "default_sample_size", None)
    )
    if side is None:  # these families say it in pixels
        return inspect.signature(type(pipe).__call__).parameters["height"].default or 1024
    scale = (
        pipe.vae_scale_factor_spatial if hasattr(pipe, "vae_scale_factor_spatial") else pipe.vae_scale_factor
    )
    return int(side if isinstance(side, int) else side[0]) * scale


def _vae(pipe: Any, family: Family) -> Tower:
    vae = pipe.vae
    sampled = not type(vae).__name__.startswith(("AutoencoderDC", "AutoencoderTiny"))

    def encode(s: Stream) -> Stream:
        x = s.x[:, :, None] if family.video else s.x
        found = vae.encode(x.to(vae.dtype))
        moments: Any = found.latent_dist.parameters if sampled else found[0]
        return Stream(moments.float(), stage=s.stage)

    tower = _closed("image", vae)
    return Tower(**{**vars(tower), "steps": (encode,), "traits": {"sampled": sampled}})


def _table(model: Any) -> Tensor:
    """The word vectors of an encoder."""
    inner: Any = model["tower"] if isinstance(model, torch.nn.ModuleDict) else model
    return inner.get_input_embeddings().weight.detach()


def _closed(name: str, model: Any) -> Tower:
    def refuse(s: Stream) -> Stream:
        raise ValueError(f"the {name!r} tower is asked through its pipeline.")

    why = f"the {name} of a diffusion pipeline takes no rows; its text encoders and its context do."
    return Tower(name, model, ("input", "pooled"), (refuse,), width=0, out=0, closed=why)
