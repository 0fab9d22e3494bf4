"""Images for training and evaluation: sources, splits, views, loaders. Layer: recipe, spec, events,
errors; imports torch.

    bundle = load_data(recipe.data, seed=0, emit=ignore)
    views = make_dataset(bundle.train, spec, augment="auto", seed=0)
    views.set_epoch(3)
    for batch in make_loader(views, 64, shuffle_seed=0, epoch=3):
        logits = network(Preprocess(spec)(batch.images))

The whole order of an epoch, each view in it and each mixup partner are pure functions of (seed,
sample id, epoch): see `draws`.
"""

from fitcompress.data.classes import match_classes
from fitcompress.data.images import ArrayImages, FileImages, Images, Subset
from fitcompress.data.loader import in_groups, make_loader
from fitcompress.data.loading import DataBundle, load_data
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import AUGMENTATIONS, Batch, Views, make_dataset

__all__ = [
    "AUGMENTATIONS",
    "ArrayImages",
    "Batch",
    "DataBundle",
    "FileImages",
    "Images",
    "Preprocess",
    "Subset",
    "Views",
    "in_groups",
    "load_data",
    "make_dataset",
    "make_loader",
    "match_classes",
]
