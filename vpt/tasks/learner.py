"""One method on the towers it uses, with its head or its class names: what one learning rate trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpt.encode import advance, encode, first
from vpt.methods import METHODS, method_class
from vpt.methods.method import Method, Say, Seen
from vpt.prompt import Context, Rows
from vpt.tasks.learning import Learning
from vpt.tasks.speech import Speech
from vpt.text import encode_text
from vpt.tower import Stream, Tower
from vpt.towers.backbone import Backbone

__all__ = ["Learner", "build_method"]


def build_method(
    name: str,
    backbone: Backbone,
    options: Mapping[str, Any] | None = None,
    *,
    classes: int = 2,
    towers: Mapping[str, Tower] | None = None,
) -> Method:
    """The method of that name on this backbone.

    classes: their number, for rows of their own.  towers: in place of the backbone's (twins in another precision).
    Raises ValueError for an option that the method does not have, and for a tower that the backbone lacks.
    """
    make = method_class(name)
    known = inspect.signature(make).parameters
    given = {**METHODS[name].options, **(options or {})}
    parts: dict[str, Any] = {**(towers or backbone.towers), "classes": classes, "scale": backbone.scale}
    parts["pipeline"] = backbone
    if "pipeline" in known and not backbone.draws:
        raise ValueError(
            f"{name} is for text to image, and {backbone.name} draws no pictures. Give a diffusion pipeline: "
            "starter/sd-mini or diffusers/REPO_OR_FOLDER."
        )
    for part in ("text", "tokens"):
        if part in known and part not in parts:
            parts[part] = getattr(backbone, part)  # raises for a backbone without a text tower
    takes = [p for p in known if p not in parts]
    if wrong := [k for k in given if k not in takes]:
        raise ValueError(
            f"method {name} has no option {', '.join(wrong)}. It has {', '.join(takes) or 'none'}."
        )
    method: Method = make(**{p: parts[p] for p in known if p in parts}, **given)
    if method.named:
        _ = backbone.text
    return method


class Learner(Learning):
    """Logits of pictures, or of a stream that stopped at ``low``.

    zero_head: start the head at 0, where few pictures at a small rate find it; VPT's published start is random and
    needs the published rates to be washed out (16 a class of Caltech101, linear probe by AdamW: 68% against 81%).
    Frozen towers are no submodules, so checkpoints and DDP do not see them; a copy that learns is.
    packed: sentences as trees; False is the plain way.
    own: the classes are among those trained on.
    captions: the classes are captions, whole sentences: they are said behind the method's rows, without its words.
    needs: frozen features are asked for, whether or not the method needs them.
    chunk: pictures that backward computes anew at a time; 0: none.
    """

    frozen: tuple[Tower, Tower | None]

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        towers: Mapping[str, Tower] | None = None,
        zero_head: bool = True,
        packed: bool = True,
        own: bool = True,
        captions: bool = False,
        needs: bool = False,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.method, self.classes = method, tuple(classes)
        used = towers or backbone.towers
        # in a tuple: nn.Module registers modules only
        reads_text = method.named or type(method).teach is not Method.teach
        self.frozen = (used["image"], used.get("text") if reads_text else None)
        self.towers = (
            method.learn(used["image"]).pooling(method.pool),
            method.learn(used["text"]) if method.named else None,
        )
        self.network = nn.ModuleDict(
            {t.name: t.model for t in self.towers if t is not None and t.learns_from is not None}
        )
        if method.output == "logits" and self.tower.logits is None:
            raise ValueError(
                f"{type(method).__name__} needs a network with its own classifier; this one has none."
            )
        self.head = None if method.named else method.head(self.width(), len(classes))
        if self.head is not None and zero_head and method.output != "logits":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.scale, self.bias = backbone.scale, backbone.bias
        self.own, self.chunk, self.needs = own, chunk, needs or method.needs
        grouped = method.class_specific
        self.speech = Speech(
            backbone, method.sentence, self._rows_of, grouped=grouped, captions=captions, packed=packed
        )
        self.cut = self.speech.cut

    def width(self) -> int:
        """Channels that the head reads."""
        return int(self.tower.model.num_classes) if self.method.output == "logits" else self.tower.out  # type: ignore[arg-type]

    def context(self, batch: int = 1, frozen: Tensor | None = None) -> Context:
        """What the method may know; frozen: un-prompted image features [batch, out], zeros where they do not matter."""
        if not self.method.needs:
            return Context(batch)
        frozen = torch.zeros(batch, self.tower.out, device=self.tower.device) if frozen is None else frozen
        return Context(batch, {"image": frozen})

    @property
    def low(self) -> str:
        """The lowest stage of the image tower that is written to or learns; below it nothing changes in training."""
        stage = first(self.tower, self.sites)
        return "normed" if self.method.output == "logits" and stage == self.tower.stages[-1] else stage

    def see(
        self, inputs: Tensor | Stream, frozen: Tensor | None = None, chosen: Tensor | None = None
    ) -> Seen:
        """Features and logits of one step.

        frozen: un-prompted image features, where they are known already.  chosen: numbers of the classes to compare
        with, by default all.
        """
        seen, rows = self._pictures(inputs, frozen)
        if self.head is not None:
            features = seen.image.float()
            features = F.normalize(features, dim=-1) if self.method.output == "normalised" else features
            return replace(seen, logits=self.head(features))
        plain = self._plain(chosen) if self.speech.captions and self.needs else None
        text = self._texts(rows, len(seen.image), chosen)
        seen = replace(seen, text=text, scale=self.scale, bias=self.bias, plain=plain, own=self.own)
        seen = replace(seen, taught=self.taught(chosen))
        return replace(seen, logits=self.rate(seen))

    def rate(self, seen: Seen, *, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """Logits of what was seen, or of other features in the place of those."""
        image, text = seen.image if image is None else image, seen.text if text is None else text
        return self.method.logits(replace(seen, image=image, text=text))

    def look(self, inputs: Tensor | Stream) -> Tensor:
        """Features [batch, out] of pictures."""
        return self._pictures(inputs, None)[0].image

    def read(self, texts: Sequence[str]) -> Tensor:
        """Features [N, out] of names, or of captions, that need not be the learner's own."""
        text, own = self.towers[1], self.method.texts(self.say(texts))
        assert text is not None
        return self.speech.encode(text, texts, self.method(self.context())) if own is None else own

    def _pictures(self, inputs: Tensor | Stream, frozen: Tensor | None) -> tuple[Seen, Rows]:
        """Image features, and the rows that were written."""
        x, method = inputs.x if isinstance(inputs, Stream) else inputs, self.method
        writes = first(self.tower, self.sites) != self.tower.stages[-1]
        # losses compare with them, rows may depend on them, and without rows they are the features
        if self.needs and frozen is None and (self.training or method.per_sample or not writes):
            with torch.no_grad():
                frozen = encode(self.frozen[0], inputs)
        rows = method(self.context(len(x), frozen))
        if self.needs and not writes:
            assert frozen is not None
            return Seen(frozen, frozen=frozen), rows
        if method.output == "logits":
            assert self.tower.logits is not None
            seen = Seen(self.tower.logits(advance(self.tower, inputs, rows, "normed")))
        elif method.reads:
            seen = self._read_back(inputs, rows)
        else:
            seen = Seen(self._encode(inputs, rows))
        return replace(seen, frozen=frozen), rows

    def _encode(self, inputs: Tensor | Stream, rows: Rows) -> Tensor:
        """Image features; in chunks of which backward keeps the features only, where the batch has several."""
        x = inputs.x if isinstance(inputs, Stream) else inputs
        if not (self.chunk and len(x) > self.chunk and torch.is_grad_enabled()):
            return encode(self.tower, inputs, rows)
        found = []
        for start in range(0, len(x), self.chunk):
            part = slice(start, start + self.chunk)
            some = replace(inputs, x=x[part]) if isinstance(inputs, Stream) else x[part]
            own = {k: r[part] if r.ndim == 3 and len(r) == len(x) else r for k, r in rows.items()}
            found.append(checkpoint(encode, self.tower, some, own, use_reentrant=False))
        return torch.cat(found)

    def _read_back(self, inputs: Tensor | Stream, rows: Rows) -> Seen:
        """The image feature with the outputs of rows beside it."""
        tower, reads = self.tower, self.method.reads
        mine = [r.shape[-2] for site, r in rows.items() if site.tower == tower.name and site.slot == "prefix"]
        if reads != ("prefix",) or not mine or not isinstance(tower.reads, int) or tower.reads > tower.prefix:
            s = advance(tower, inputs, rows, "normed")
            return Seen(encode(tower, s), read={slot: s.x[:, s.places[slot][0]] for slot in reads})
        # rows stand right behind what pooling reads: the last block works for these leading tokens alone
        lead = replace(tower, reads=tower.prefix + mine[0], reads_rows=True)
        s = advance(lead, inputs, rows, "normed", trim=True)
        return Seen(encode(tower, s), read={"prefix": s.x[:, tower.prefix :]})

    def forward(self, inputs: Tensor | Stream) -> Tensor:
        """Logits [batch, K]."""
        return self.see(inputs).logits

    def texts(self) -> Tensor:
        """Class features [K, out] of rows that do not depend on a picture."""
        return self._texts(self.method(self.context()), 1)

    @property
    def says(self) -> bool:
        """Whether the text tower is written to, or learns: else its features stay as they are."""
        text = self.towers[1]
        return text is not None and (
            text.learns_from is not None or any(s.tower == text.name for s in self.sites)
        )

    def _texts(self, rows: Rows, batch: int, chosen: Tensor | None = None) -> Tensor:
        text = self.towers[1]
        assert text is not None
        if self.says and (self.training or self.method.per_sample or torch.is_grad_enabled()):
            sets, recompute = batch if self.method.per_sample else None, True if self.chunk else None
            if chosen is not None:
                return self._chosen(rows, chosen, recompute)
            return encode_text(text, self._below(rows), rows, sets=sets, recompute=recompute)
        if "texts" not in self._kept:
            with torch.no_grad():
                self._kept["texts"] = self.read(self.classes).to(self.tower.device)
        kept: Tensor = self._kept["texts"]
        return kept if chosen is None else kept[chosen.to(kept.device)]

    def stored_texts(self) -> Tensor | None:
        """Features of all classes where the text tower is not written to; None where it is."""
        return None if self.says or self.head is not None else self._texts({}, 1)

    def _chosen(self, rows: Rows, chosen: Tensor, recompute: bool | None) -> Tensor:
        """Features of some classes; sentences that hold no rows are those of the frozen tower, read once for all."""
        text, known = self.towers[1], self._kept.setdefault("sentences", {})
        assert text is not None
        numbers = chosen.tolist()
        if new := [n for n in numbers if n not in known]:
            known |= zip(new, self.speech.sentences([self.classes[n] for n in new]), strict=True)
        said = [known[n] for n in numbers]
        held = text.learns_from is None and all(slot.startswith("<") for slot in self._rows_of())
        live = [i for i, sentence in enumerate(said) if sentence.slots or not held]
        if not live:
            return self._plain(chosen)
        laid = self.speech.lay(text, [said[i] for i in live])
        found = encode_text(text, laid, rows, recompute=recompute)
        if len(live) == len(said):
            return found
        return self._plain(chosen).to(found).index_copy(0, torch.tensor(live, device=found.device), found)

    def _rows_of(self) -> dict[str, int]:
        """The number of rows of each slot of the text tower."""
        if "rows of" not in self._kept:
            with torch.no_grad(), torch.random.fork_rng():
                rows = self.method(self.context())
            self._kept["rows of"] = {s.slot: r.shape[-2] for s, r in rows.items() if s.tower == "text"}
        return self._kept["rows of"]

    def _below(self, rows: Rows) -> list[Stream]:
        """The class sentences as the first block that sees rows reads them: below it nothing changes."""
        text = self.towers[1]
        assert text is not None
        low = first(text, rows)
        if not low.isdigit() or low == "0":  # there is nothing to save
            return self.streams()
        if "below" not in self._kept:
            # made while predicting, they serve training too
            with torch.inference_mode(False), torch.no_grad():
                self._kept["below"] = [advance(text, s, {}, low) for s in self.streams()]
        return self._kept["below"]

    def busiest(self, inputs: Tensor | Stream) -> tuple[Tower | None, Tensor]:
        """Where pictures' features are stored, the text decides."""
        x, text = inputs.x if isinstance(inputs, Stream) else inputs, self.towers[1]
        return (text, self.streams()[0].x) if x.ndim == 2 and text is not None else (self.tower, x)

    def layout(self) -> str:
        """How the class sentences are read, in a sentence; empty for a method with a head."""
        text, names = self.towers[1], len(self.classes)
        if text is None or text.reading is None:
            return ""
        if self.speech.captions:
            return f"{names:,} captions, each said in {self.speech.sentence!r}"
        streams = self.streams()
        tokens, whole = sum(s.x.numel() for s in streams), names * text.reading.context
        if text.reading.causal and self.speech.packed:
            how = f"packed into {len(streams)} row{'s' * (len(streams) > 1)}"
        else:
            how = "cut after the longest" if text.reading.cuts and self.speech.packed else "read whole"
            how += ", since this text tower sees what stands behind a word" if self.speech.packed else ""
        return f"{names} names in {self.method.sentence!r}, {how}: {tokens:,} tokens of {whole:,}"

    def streams(self) -> list[Stream]:
        """The class sentences, laid out for the text tower."""
        if "streams" not in self._kept:
            text = self.towers[1]
            assert text is not None
            self._kept["streams"] = self.speech.lay(text, self.speech.sentences(self.classes))
        return self._kept["streams"]

    def say(self, names: Sequence[str]) -> Say:
        """What the frozen text tower says of these class names, or of these captions."""
        return Say(
            tuple(names), self._frozen_texts, self._frozen_texts(names) if self.speech.captions else None
        )

    def _frozen_texts(self, sentences: Sequence[str]) -> Tensor:
        assert self.frozen[1] is not None
        return self.speech.frozen(self.frozen[1], sentences)

    def _plain(self, chosen: Tensor | None) -> Tensor:
        """Features of captions by the frozen text tower."""
        if "plain" not in self._kept:
            self._kept["plain"] = self._frozen_texts(self.classes)
        kept: Tensor = self._kept["plain"]
        return kept if chosen is None else kept[chosen.to(kept.device)]

    def taught(self, chosen: Tensor | None = None) -> Mapping[str, Tensor]:
        """What the method compares with while it trains, or solves from; computed once."""
        if not self.training or self.frozen[1] is None:
            return {}
        if chosen is not None:
            named = tuple(self.classes[n] for n in chosen.tolist())
            return self.method.teach(Say(named, self._frozen_texts, self._plain(chosen)))
        if "taught" not in self._kept:
            self._kept["taught"] = self.method.teach(self.say(self.classes))
        return self._kept["taught"]

    def train(self, mode: bool = True) -> Self:
        """Rows and head follow ``mode``; networks stay in eval mode, as they were pretrained to be used."""
        if self.says:
            self._kept.pop("texts", None)
        return super().train(mode)

    def label(self) -> dict[str, Any]:
        """How names are said, or what the head reads."""
        if not self.method.named:
            return {"pool": self.method.pool, "head": {"reads": self.method.output}}
        said = {"sentence": self.speech.sentence, "class_specific": self.method.class_specific}
        return {"pool": self.method.pool, "names": said}
