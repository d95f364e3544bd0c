"""The cards agree with the papers, the templates with the authors' code, the files with the cards."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vpt.data.item import DataError
from vpt.data.protocols import card, datasets, shifts, templates

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"


def test_every_file_is_a_card_that_says_how_it_is_named() -> None:
    cards = {**datasets(), **shifts()}
    assert {f.stem for f in CONFIGS.iterdir()} == cards.keys()
    for name, found in cards.items():
        text = (CONFIGS / f"{name}.yaml").read_text()
        assert f"coop:{name}" in text
        assert "2109.01134" in text.splitlines()[0]
        assert found.layout.startswith(f"{found.folder}/")
        assert {*yaml.safe_load(text)} <= {*vars(found)}
        assert all(template.count("{}") == 1 for template in found.templates.values())


def test_classes_and_splits_are_those_of_coops_table() -> None:
    """Classes, train, val and test of the data sets in the appendix of arXiv 2109.01134; train of ImageNet in full."""
    assert {found.title: (found.classes, *found.counts.values()) for found in datasets().values()} == {
        "ImageNet": (1000, 1281167, 50000),
        "Caltech101": (100, 4128, 1649, 2465),
        "OxfordPets": (37, 2944, 736, 3669),
        "StanfordCars": (196, 6509, 1635, 8041),
        "OxfordFlowers": (102, 4093, 1633, 2463),
        "Food101": (101, 50500, 20200, 30300),
        "FGVCAircraft": (100, 3334, 3333, 3333),
        "SUN397": (397, 15880, 3970, 19850),
        "DescribableTextures": (47, 2820, 1128, 1692),
        "EuroSAT": (10, 13500, 5400, 8100),
        "UCF101": (101, 7639, 1898, 3783),
    }
    assert {name: found.counts for name, found in shifts().items()} == {
        "imagenetv2": {"test": 10000},
        "imagenet_sketch": {"test": 50889},
        "imagenet_a": {"test": 7500},
        "imagenet_r": {"test": 30000},
    }


def test_templates_are_the_authors() -> None:
    plain = "a photo of a {}."
    zero_shot = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "food101": "a photo of {}, a type of food.",
        "ucf101": "a photo of a person doing {}.",
    }
    prograd = {
        "oxford_pets": "a type of pet, a photo of a {}.",
        "oxford_flowers": "a type of flower, a photo of a {}.",
        "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
        "dtd": "a texture of {}.",
        "food101": "a type of food, a photo of {}.",
    }
    kgcoop = {"dtd": "a photo of a {}, a type of texture."}
    for name in {**datasets(), **shifts()}:
        first = zero_shot.get(name, plain)
        assert templates(name) == {
            "zero-shot": first,
            "prograd": prograd.get(name, first),
            "kgcoop": kgcoop.get(name, first),
        }


def test_a_name_that_is_none_is_refused_with_those_near() -> None:
    with pytest.raises(DataError, match=r"no data set 'caltech-101'.*Close names: caltech101"):
        card("caltech-101")
    with pytest.raises(DataError, match=r"Names: imagenet, caltech101, .*, imagenet_r\."):
        card("?")
