"""Templates of class names that several methods share; the words are OpenAI's, as open_clip ships them."""

from __future__ import annotations

from functools import cache

__all__ = ["checked", "ensemble"]

SIZES = {"imagenet-80": 80, "imagenet-60": 60}


@cache
def ensemble(name: str = "imagenet-80") -> tuple[str, ...]:
    """Templates by name: "imagenet-80" (CLIP's, arXiv 2103.00020), "imagenet-60" the first 60 of them, which are
    PromptSRC's (arXiv 2307.06948), "imagenet-7" CLIP's short list. Raises ValueError that lists the names."""
    import open_clip  # seconds

    if name == "imagenet-7":
        return tuple(make("{}") for make in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    if name not in SIZES:
        raise ValueError(f"no templates {name!r}. There are {', '.join(SIZES)} and imagenet-7.")
    return tuple(make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES[: SIZES[name]])


def checked(template: str) -> str:
    """The template; raises ValueError where it has no place for the class name."""
    if "{}" not in template:
        raise ValueError(
            f"the template {template!r} has no {{}} where the class name goes. Write it such as 'a photo of a {{}}.'."
        )
    return template
