"""The classes of a dataset: those declared when it was registered, else those of its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from clab_d2.data.coco_json import Json, first_repeat, read_coco_json, require, some_of
from clab_d2.errors import DataError


@dataclass(frozen=True)
class DatasetClasses:
    names: list[str]
    index_of_id: dict[int, int]  # the JSON's category id -> index in names
    ignored_ids: set[int]  # categories of the JSON that are no class of the dataset


def classes_of(json_file: str, categories: Sequence[Json], name: str | None) -> DatasetClasses:
    for position, category in enumerate(categories):
        require(json_file, "categories", position, category, {"id": int, "name": str})
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    for what, values in (("id", ids), ("name", names)):
        if len(set(values)) != len(values):
            raise DataError(
                f"{json_file}: two categories share the {what} {first_repeat(values)!r}; give "
                "each its own"
            )
    wanted = _declared_classes(name) or names
    if not set(wanted) & set(names):
        raise DataError(
            f"{json_file}: none of its categories ({some_of(names)}) is a class of dataset "
            f"{name!r} ({some_of(wanted)}); register it under a name of its own in DATASETS.VID"
        )
    index_of_name = {class_name: index for index, class_name in enumerate(wanted)}
    index_of_id = {
        category_id: index_of_name[category]
        for category_id, category in zip(ids, names, strict=True)
        if category in index_of_name
    }
    return DatasetClasses(list(wanted), index_of_id, set(ids) - set(index_of_id))


def _declared_classes(name: str | None) -> list[str] | None:
    """Classes given at registration, as opposed to those taken over from the JSON."""
    metadata = MetadataCatalog.get(name) if name is not None else None
    if metadata is None or metadata.get("classes_from_json"):
        return None
    return metadata.get("thing_classes")


def set_metadata(name: str, classes: DatasetClasses) -> None:
    metadata = MetadataCatalog.get(name)
    values = _metadata_of(classes)
    if _declared_classes(name) is not None:
        values = {"thing_dataset_id_to_contiguous_id": classes.index_of_id}
    for key, value in values.items():
        # Metadata refuses to change a value; a JSON made anew under the same name may.
        vars(metadata).pop(key, None)
        setattr(metadata, key, value)


def _metadata_of(classes: DatasetClasses) -> Json:
    return {
        "classes_from_json": True,
        "thing_classes": classes.names,
        "thing_dataset_id_to_contiguous_id": classes.index_of_id,
    }


def read_classes_metadata(json_file: str) -> Json:
    """Return the metadata that describes the classes of a COCO-style file, in the file's order."""
    classes = classes_of(json_file, read_coco_json(json_file)["categories"], None)
    return _metadata_of(classes)
