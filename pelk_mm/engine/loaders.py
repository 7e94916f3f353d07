"""Find the transform of a pipeline that reads a file, and the file client that it uses, if these are known.

A check that does not know stays out: a loader of somebody's own may read anything from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmengine import fileio
from mmengine.fileio import FileClient, LocalBackend
from mmengine.fileio.backends import backends, prefix_to_backends

# Packages whose transforms and data sets are known.
KNOWN = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'pelk_mm', 'torchvision')


def is_known(item: Any, *methods: str) -> bool:
    """Return whether an object's class, or these methods of it, come from the packages in ``KNOWN``."""
    sources = [getattr(type(item), method, None) for method in methods] or [type(item)]
    return all(getattr(source, '__module__', '').partition('.')[0] in KNOWN for source in sources)


def file_key(step: Any) -> str | None:
    """Return the key of the file that a transform reads as ``LoadImageFromFile`` or a toolbox's ``LoadAnnotations``."""
    from mmcv.transforms import LoadAnnotations, LoadImageFromFile
    if isinstance(step, LoadImageFromFile):
        same = type(step).transform is LoadImageFromFile.transform and is_known(step, '__call__')
        return 'img_path' if same else None
    if isinstance(step, LoadAnnotations) and step.with_seg and is_known(step, '__call__', 'transform', '_load_seg_map'):
        return 'seg_map_path'
    return None


def inner_pipelines(step: Any) -> Iterator[Any]:
    """Yield the pipelines that a transform holds, such as those of ``TestTimeAug``."""
    for value in getattr(step, '__dict__', {}).values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(getattr(item, 'transforms', None), list):
                yield item


def flat_steps(step: Any) -> Iterator[Any]:
    """Yield a transform or pipeline and everything that it holds, in order."""
    step = getattr(step, 'checked_step', step)
    yield step
    steps = getattr(step, 'transforms', None)
    for inner in filter(callable, steps) if isinstance(steps, list) else inner_pipelines(step):
        yield from flat_steps(inner)


def find_loader(dataset: Any, key: str) -> tuple[Callable | None, list[Any]]:
    """Find the transform that reads the files of a data set under a key.

    Args:
        dataset (Any): Of ``mmengine.dataset.BaseDataset``'s kind.
        key (str): ``'img_path'`` or ``'seg_map_path'``.

    Returns:
        tuple: The transform and those that follow it. None and nothing, if none loads, if it is not known how it
        reads, or if something that is not known comes before it. For a data set without transforms, whose files are
        meant for somebody else, a stand-in that reads as MMEngine does by default.
    """
    if not hasattr(dataset, 'pipeline') or not is_known(dataset, '__getitem__', 'prepare_data'):
        return None, []
    steps = list(flat_steps(dataset.pipeline))
    if len(steps) == 1 and is_known(steps[0]):
        return fileio.get, []
    for number, step in enumerate(steps):
        if file_key(step) == key:
            return step, steps[number + 1:]
        if not is_known(step):
            break
    return None, []


def reads_local_file(step: Any, path: Any) -> bool:
    """Return whether a transform reads a path from this machine's file system, by its ``backend_args``."""
    old_args = getattr(step, 'file_client_args', None)
    return isinstance(path, str) and is_local(path, old_args or getattr(step, 'backend_args', None), bool(old_args))


def is_local(path: str, backend_args: dict | None = None, old_client: bool = False) -> bool:
    """Return whether MMEngine's file client reads a path from this machine's file system. No client is built.

    Args:
        path (str): A path or address.
        backend_args (dict, optional): As for ``mmengine.fileio.get``.
        old_client (bool): Whether these are ``file_client_args``. Defaults to False.
    """
    name = (backend_args or {}).get('backend')
    prefix = path.partition('://')[0].rpartition(':')[2] if '://' in path else ''
    if old_client:
        kind = FileClient._backends.get(name or ('' if prefix else 'disk'))
    else:
        kind = backends.get(name) if name else prefix_to_backends.get(prefix)
    return kind is not None and issubclass(kind, LocalBackend) and kind.get is LocalBackend.get
