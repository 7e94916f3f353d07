"""Archives of small files, shaped like those of the published data sets."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Return the content of an image file, ``'JPEG'`` or ``'PNG'``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(files: Mapping[str, bytes], mode: str = 'w:') -> bytes:
    """Return a tar archive of files, by name their content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write a zip archive of files, by name their content."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def write_imagenet(folder: Path, train: Mapping[str, Sequence[bytes]], val: Sequence[bytes],
                   synsets: Sequence[tuple[str, int]], truth: Sequence[int]) -> Path:
    """Write ImageNet's three archives into a new folder.

    Args:
        folder (Path): Is made.
        train (Mapping[str, Sequence[bytes]]): The images to train, by wnid.
        val (Sequence[bytes]): The images to validate.
        synsets (Sequence[tuple[str, int]]): Of each the wnid and the number of children, as the devkit lists them.
        truth (Sequence[int]): For each image to validate the number of its synset, from 1 on.

    Returns:
        Path: The folder.
    """
    folder.mkdir()
    classes = {f'{wnid}.tar': tar_of({f'{wnid}_{number}.JPEG': image for number, image in enumerate(images)})
               for wnid, images in train.items()}
    (folder / 'ILSVRC2012_img_train.tar').write_bytes(tar_of(classes))
    (folder / 'ILSVRC2012_img_val.tar').write_bytes(
        tar_of({f'ILSVRC2012_val_{number:08d}.JPEG': image for number, image in enumerate(val, 1)}))
    table = np.zeros((len(synsets), 1), [(name, 'O') for name in ('ILSVRC2012_ID', 'WNID', 'words', 'num_children')])
    for number, (wnid, children) in enumerate(synsets):
        table[number, 0] = (number + 1, wnid, 'thing', children)
    meta, data = io.BytesIO(), 'ILSVRC2012_devkit_t12/data'
    savemat(meta, dict(synsets=table))
    numbers = ''.join(f'{number}\n' for number in truth).encode()
    (folder / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(tar_of(
        {f'{data}/meta.mat': meta.getvalue(), f'{data}/ILSVRC2012_validation_ground_truth.txt': numbers}, 'w:gz'))
    return folder
