"""An index: a folder with the vectors of a collection, what made them, and a store that finds the nearest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpt.data.collection import open_collection
from vpt.data.item import Files, Item, Source, some
from vpt.promptset import PromptSet
from vpt.search.embed import Embedded, embed, read_picture
from vpt.search.encoder import Encoder, opened
from vpt.search.faiss_vectors import FaissVectors, kind_for
from vpt.search.manifest import Manifest, labels, live, live_vectors, shards_of, writing
from vpt.search.resume import BEGUN, clear, every, previous, resumed, wanted
from vpt.search.shards import SHARD, BadIndex, Label, read_label
from vpt.search.stores import drop_old, fill, open_database, open_faiss
from vpt.search.vectors import Hit, Vectors

__all__ = ["Index"]

FILES = Files("", (), False, {})  # reads items that say their file


class Index:
    """Open with :meth:`open`, make with :meth:`build`. Readers see the folder as it was when they opened it."""

    def __init__(self, folder: str | os.PathLike[str], manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self.embedded = Embedded()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], encoder: Encoder | None = None) -> Index:
        """Raises FileNotFoundError, BadIndex, and ValueError where ``encoder`` makes other vectors (:meth:`check`)."""
        index = cls(folder, Manifest.read(Path(folder)))
        if encoder is not None:
            index.check(encoder)
        return index

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        encoder: Encoder,
        collection: str | os.PathLike[str],
        *,
        root: str | None = None,
        kind: str | None = None,
        store: str | None = None,
        batch_size: int = 64,
        shard: int = SHARD,
        skip_unreadable: bool = False,
        progress: bool = False,
        embedder: Callable[..., Embedded] = embed,
    ) -> Index:
        """Embed a collection and fill a store. Given again, it goes on after a kill; once built, it embeds what is new
        or another file under its name, drops what left the collection, and fills the store again.

        kind: auto, flat, ivf or hnsw, of a FAISS store.  store: faiss, or the address of a database. None: as it is,
        or else auto and faiss.  embedder: called as ``embed`` is, in its place; one that hands the work to
        ``embed_with_ray`` leaves the same shards.
        Raises ValueError for an index of another encoder or collection, IndexBusy, and DataError as ``embed`` does.
        """
        folder = Path(folder)
        name = os.path.abspath(collection) if os.path.exists(collection) else str(collection)
        kind_for(kind or "auto", 0)
        source = open_collection(name, root)
        items = every(source)
        with writing(folder):
            old = previous(folder, encoder, name)
            new = old or Manifest(encoder.about(), name, root)
            new = replace(new, root=root, kind=kind or new.kind, store=store or new.store)
            target = open_database(
                new.store, new.encoder["width"], fresh=old is None or new.store != old.store
            )
            known = labels(folder, new) + resumed(folder, encoder, new)
            missing = wanted(items, known, new)
            index = cls(folder, new)
            index.embedded = embedder(
                encoder,
                source,
                missing,
                shards_of(folder),
                first=len(known),
                batch_size=batch_size,
                shard=shard,
                skip_unreadable=skip_unreadable,
                progress=progress,
            )
            known += [read_label(shards_of(folder), n) for n in index.embedded.shards]
            index._drop_gone(known, {item.key for item in items})
            index._keep_rows(encoder)
            index._settle(known, target, skipped=[list(pair) for pair in index.embedded.skipped])
            (shards_of(folder) / BEGUN).unlink(missing_ok=True)
        return index

    @classmethod
    def refill(
        cls, folder: str | os.PathLike[str], *, kind: str | None = None, store: str | None = None
    ) -> Index:
        """Fill the store again from the shards on disk, or another one. Nothing is embedded."""
        folder = Path(folder)
        kind_for(kind or "auto", 0)
        old = Manifest.read(folder)
        with writing(folder):
            old = Manifest.read(folder)
            new = replace(old, kind=kind or old.kind, store=store or old.store)
            target = open_database(new.store, new.encoder["width"], fresh=new.store != old.store)
            index = cls(folder, new)
            index._settle(labels(folder, new), target)
        return index

    def add(
        self,
        encoder: Encoder,
        pictures: Sequence[str | os.PathLike[str]],
        *,
        batch_size: int = 64,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Embedded:
        """Embed picture files, whose paths as given are their ids; a known id is replaced.

        Raises ValueError for another encoder and for a graph, which cannot grow, FileNotFoundError, IndexBusy.
        """
        self.check(encoder)
        items = [Item(Path(p).as_posix(), 0, str(p)) for p in dict.fromkeys(pictures)]
        if missing := [i.file for i in items if not Path(i.file).is_file()]:
            raise FileNotFoundError(f"there is no picture {some(missing)}, so nothing was added.")
        with writing(self.folder):
            self._again()
            self._refuse_graph("added to")
            self.check(encoder)
            known, before = labels(self.folder, self.manifest), self.manifest.shards
            clear(self.folder, before)
            target = open_database(self.manifest.store, self.manifest.encoder["width"])
            found = embed(
                encoder,
                FILES,
                items,
                shards_of(self.folder),
                first=before,
                added=True,
                batch_size=batch_size,
                skip_unreadable=skip_unreadable,
                progress=progress,
            )
            known += [read_label(shards_of(self.folder), n) for n in found.shards]
            self._settle(known, target, fresh=found.shards)
        return found

    def remove(self, ids: Sequence[str]) -> int:
        """Take pictures out; returns how many. Their vectors stay in the shards, and are not found any more.

        Raises ValueError for ids that are not in the index, and for a graph, which cannot shrink; IndexBusy.
        """
        with writing(self.folder):
            self._again()
            self._refuse_graph("removed from")
            known = labels(self.folder, self.manifest)
            there = live(known, self.manifest.dead)
            if strange := [i for i in dict.fromkeys(ids) if i not in there]:
                raise ValueError(f"not in {self.folder}: {some(strange)}. Nothing was removed.")
            target = open_database(self.manifest.store, self.manifest.encoder["width"])
            gone = dict.fromkeys(ids, self.manifest.shards)
            self.manifest = replace(self.manifest, removed={**self.manifest.removed, **gone})
            self._settle(known, target, fresh=[], gone=list(gone))
        return len(gone)

    def search(
        self,
        encoder: Encoder,
        *,
        texts: Sequence[str] = (),
        images: Sequence[Image.Image | str | os.PathLike[str]] = (),
        k: int = 10,
    ) -> list[list[Hit]]:
        """The k nearest pictures of each text, then of each picture; best first.

        Raises ValueError for an encoder that makes other vectors, an empty index, no query, and as
        :meth:`vpt.search.encoder.Encoder.texts` does.
        """
        self.check(encoder)
        if not self.manifest.count:
            raise ValueError(
                f"{self.folder} holds no pictures. Add some: vpt index add {self.folder} PICTURES."
            )
        if not (texts or images):
            raise ValueError("nothing to look for. Give texts or pictures.")
        parts = [encoder.texts(texts)] if texts else []
        parts += [encoder.images(images)] if images else []
        return self.vectors.search(np.concatenate(parts), k)

    @cached_property
    def vectors(self) -> Vectors:
        """The store. Raises BadIndex where it is damaged, and what a database raises."""
        if not self.manifest.filled:
            warnings.warn(
                f"a writer was stopped before {self.manifest.store} held all of {self.folder}. Fill it: vpt index "
                f"build --out {self.folder}.",
                stacklevel=2,
            )
        found = open_database(self.manifest.store, self.manifest.encoder["width"])
        found = self._open_faiss() if found is None else found  # an empty one is false
        if len(found) < self.manifest.count:
            raise BadIndex(
                f"{self.manifest.store} holds {len(found)} of the {self.manifest.count} vectors of {self.folder}. Fill "
                f"it again: vpt index build --out {self.folder}."
            )
        return found

    def _open_faiss(self) -> Vectors:
        """A writer may put another one in its place meanwhile; then that is opened."""
        while True:
            try:
                return open_faiss(self.folder / self.manifest.vectors)
            except (FileNotFoundError, BadIndex) as error:
                was, self.manifest = self.manifest.vectors, Manifest.read(self.folder)
                if was != self.manifest.vectors:
                    continue
                if isinstance(error, BadIndex):
                    raise
                raise BadIndex(
                    f"{self.folder / was} is missing. Its vectors are kept apart from it: run vpt index build --out "
                    f"{self.folder} to fill it again."
                ) from None

    @cached_property
    def _labels(self) -> list[Label]:
        return labels(self.folder, self.manifest)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return live(self._labels, self.manifest.dead)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def ids(self) -> list[str]:
        """Of every picture that can be found."""
        return list(self._places)

    def item(self, id: str) -> Item:
        """Where the picture lies, with its captions. Raises KeyError for an id that is not here."""
        shard, row = self._places[id]
        return self._labels[shard].item(row)

    def picture(self, id: str) -> Image.Image:
        """Read again, RGB. Raises KeyError, and UnreadableImage where it is gone."""
        item = self.item(id)
        return read_picture(FILES if item.file else self._source, item)

    @cached_property
    def _source(self) -> Source:
        return open_collection(self.manifest.collection, self.manifest.root)

    def encoder(
        self,
        prompts: str | os.PathLike[str] | None = None,
        concepts: Sequence[str | os.PathLike[str]] = (),
        *,
        device: str = "auto",
    ) -> Encoder:
        """What embedded these pictures, for queries. prompts: a file in place of the index's own, for its text rows."""
        own = self.folder / self.manifest.prompts if self.manifest.prompts else None
        sets = [PromptSet.load(path) for path in concepts]
        first = PromptSet.load(prompts or own) if prompts or own else None  # type: ignore[arg-type]
        return Encoder(opened(self.manifest.encoder["backbone"], device), first, sets)

    def check(self, encoder: Encoder) -> None:
        """Raises ValueError, with both values and what to do, for an encoder that makes other vectors of pictures."""
        self.manifest.check(self.folder, encoder.about())

    def _refuse_graph(self, done: str) -> None:
        if self.manifest.store == "faiss" and self.manifest.kind == "hnsw":
            raise ValueError(
                f"{self.folder} is an HNSW graph, which can be searched and not {done}. Make it another kind first: "
                f"vpt index build --out {self.folder} --kind auto (nothing is embedded again)."
            )

    def _again(self) -> None:
        """Read what the folder is now that nobody else writes."""
        self.manifest = Manifest.read(self.folder)

    def _drop_gone(self, known: Sequence[Label], there: set[str]) -> None:
        """Pictures of the collection that are in it no longer."""
        places = live(known, self.manifest.dead)
        gone = {i: len(known) for i, (n, _) in places.items() if not known[n].added and i not in there}
        self.manifest = replace(self.manifest, left={**self.manifest.left, **gone})

    def _keep_rows(self, encoder: Encoder) -> None:
        """A copy of the prompt file whose rows the pictures were embedded with: later pictures need it."""
        rows = self.manifest.encoder["rows"]
        if rows and not self.manifest.prompts:
            name = f"prompts-{rows.split()[0]}.safetensors"
            encoder.tuned.prompts.save(self.folder / name)
            self.manifest = replace(self.manifest, prompts=name)

    def _settle(
        self,
        known: Sequence[Label],
        target: Vectors | None,
        *,
        fresh: Sequence[int] | None = None,
        gone: Sequence[str] = (),
        skipped: list[list[str]] | None = None,
    ) -> None:
        """Bring the store to what the shards say, and put the manifest in place.

        target: a database; None is FAISS.  fresh: shards that the store lacks, gone: ids it has too many; None: fill it
        whole.
        """
        places = live(known, self.manifest.dead)
        new = replace(self.manifest, shards=len(known), count=len(places)).without(places)
        new = new if skipped is None else replace(new, skipped=skipped)
        if target is None:
            made = self._faiss(new, known, places, fresh, gone)
            name = f"vectors-{new.generation + 1:06d}"
            made.save(self.folder / name)
            self.manifest = replace(new, vectors=name, filled=True).save(self.folder)
        else:
            whole_ = fresh is None or not new.filled
            started = replace(new, filled=False, vectors="").save(self.folder)
            dead = [i for label in known for i in label.ids if i not in places] if whole_ else list(gone)
            target.remove(dead)
            fill(target, live_vectors(self.folder, known, places, None if whole_ else fresh))
            if len(target) != len(places):
                raise ValueError(
                    f"{new.store} holds {len(target)} vectors after {len(places)} were written. It holds others, or "
                    "somebody else writes to it: give this index a store of its own."
                )
            target.close()
            self.manifest = replace(started, filled=True).save(self.folder)
        drop_old(self.folder, self.manifest.vectors)
        for name in ("vectors", "_labels", "_places"):
            self.__dict__.pop(name, None)

    def _faiss(
        self,
        new: Manifest,
        known: Sequence[Label],
        places: dict[str, tuple[int, int]],
        fresh: Sequence[int] | None,
        gone: Sequence[str],
    ) -> FaissVectors:
        """As it will be: changed, or built anew where that is asked for or the count asks for another kind."""
        if fresh is not None and self.manifest.vectors:
            made = FaissVectors.load(self.folder / self.manifest.vectors)
            if made.kind == kind_for(new.kind, len(places)):
                made.remove(gone)
                fill(made, live_vectors(self.folder, known, places, fresh))
                return made
        return FaissVectors.build(
            new.encoder["width"], lambda: live_vectors(self.folder, known, places), len(places), new.kind
        )

    def info(self) -> dict[str, Any]:
        """What the index is, for people and programs; ``valid`` says in words which prompt sets it serves."""
        m, backbone = self.manifest, self.manifest.encoder["backbone"]
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        about = m.store if m.store != "faiss" else getattr(self.vectors, "about", "")
        return {
            "folder": str(self.folder),
            "pictures": m.count,
            "collection": m.collection,
            "backbone": backbone["name"],
            "fingerprint": m.encoder["fingerprint"],
            "image_rows": m.encoder["rows"],
            "width": m.encoder["width"],
            "text": "text" in backbone["fingerprints"],
            "store": m.store,
            "kind": m.kind,
            "about": about,
            "filled": m.filled,
            "shards": m.shards,
            "removed": len(m.dead),
            "skipped": m.skipped,
            "bytes": sum(p.stat().st_size for p in files),
            "vpt": m.vpt,
            "valid": m.valid,
        }
