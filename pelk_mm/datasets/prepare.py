"""Prepare ImageNet, ADE20K and COCO: from the published archives to the folders that the toolboxes read."""

import io
import re
import shlex
import tarfile
import zlib
from pathlib import Path

import numpy as np
from mmengine.logging import MMLogger
from PIL import Image
from rich.progress import track
from scipy.io import loadmat

from .archives import extract_tar, extract_tar_of_tars, extract_zip

IMAGENET_TRAIN = 'ILSVRC2012_img_train.tar'
IMAGENET_VAL = 'ILSVRC2012_img_val.tar'
IMAGENET_DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
ADE20K_ARCHIVE = 'ADEChallengeData2016.zip'
COCO_ARCHIVES = ('train2017.zip', 'val2017.zip', 'annotations_trainval2017.zip')
ADE20K_NUM_CLASSES = 150


def prepare_imagenet(archives: Path, root: Path, val_layout: str = 'meta') -> None:
    """Extract ImageNet-1K from the archives that exist, and give its validation images their labels.

    Training images go to ``train/<wnid>``. Validation images come without labels; mmpretrain reads these from
    ``meta/val.txt``, or from class folders when there is no such file.

    Args:
        archives (Path): Folder with ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and
            ``ILSVRC2012_devkit_t12.tar.gz``, or one of these files, to prepare only training or validation. Validation
            needs the devkit.
        root (Path): Folder to prepare, usually ``data/imagenet``.
        val_layout (str): 'meta' leaves the images in ``val/`` and writes ``meta/val.txt``, 'folders' puts them into
            ``val/<wnid>``, moving those that lie in ``val/`` already. Defaults to 'meta'.

    Raises:
        ValueError: If ``val_layout`` is unknown or an archive is damaged.
        FileNotFoundError: If the archives are missing.
        FileExistsError: If something else is in the way; it is left as it is.
    """
    if val_layout not in ('meta', 'folders'):
        raise ValueError(f"val_layout must be 'meta' or 'folders', but got {val_layout!r}.")
    archives, names = _folder_and_names(archives, (IMAGENET_TRAIN, IMAGENET_VAL, IMAGENET_DEVKIT))
    train, val, devkit = archives / IMAGENET_TRAIN, archives / IMAGENET_VAL, archives / IMAGENET_DEVKIT
    labelled = val_layout == 'meta' and (root / 'meta/val.txt').is_file()
    unsorted = any((root / 'val').glob('ILSVRC2012_val_*.JPEG'))
    has_train = IMAGENET_TRAIN in names and train.is_file()
    has_val = names != (IMAGENET_TRAIN, ) and (val.is_file() or (unsorted and not labelled))
    if not has_train and not has_val:
        raise FileNotFoundError(f'{_holds(archives)} neither {IMAGENET_TRAIN} nor {IMAGENET_VAL}. Get them from '
                                'https://image-net.org/download-images.php (with an account).')
    if has_val and not devkit.is_file():
        raise FileNotFoundError(f'{devkit} is missing: it has the labels of the validation images. Get it from '
                                'https://image-net.org/download-images.php (with an account).')
    if has_val:
        _prepare_imagenet_val(val, devkit, root, val_layout)
    if has_train:
        written = extract_tar_of_tars(train, root / 'train')
        _log(f'{IMAGENET_TRAIN}: {written} images written to {root / "train"}.')
    else:
        why = f'only {names[0]} was named' if train.is_file() else f'{train} is not there'
        _log(f'{why}: the training images are left out.')


def read_imagenet_devkit(devkit: Path) -> tuple[dict[str, str], list[str]]:
    """Read the labels of ImageNet's validation images from ``ILSVRC2012_devkit_t12.tar.gz``.

    Returns:
        tuple: From file name to wnid, in the order of the names, and the sorted wnids: the position of a wnid in them
        is its label in mmpretrain.

    Raises:
        ValueError: If the devkit is damaged or another file.
    """
    try:
        with tarfile.open(devkit, mode='r:gz') as opened:
            files = {Path(member.name).name: member for member in opened.getmembers()}
            synsets = opened.extractfile(files['meta.mat']).read()
            truth = opened.extractfile(files['ILSVRC2012_validation_ground_truth.txt']).read()
        # The devkit numbers the classes in its own order, and lists inner nodes of the hierarchy as well.
        synsets = loadmat(io.BytesIO(synsets), squeeze_me=True)['synsets']
        leaves = synsets[synsets['num_children'] == 0]
        wnid_of = {int(number): str(wnid) for number, wnid in zip(leaves['ILSVRC2012_ID'], leaves['WNID'])}
        labels = [wnid_of[int(line)] for line in truth.split()]
    except (tarfile.ReadError, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(f'{devkit} is damaged or not the devkit of tasks 1 and 2 ({error!r}): '
                         'download it again.') from error
    names = {f'ILSVRC2012_val_{number:08d}.JPEG': wnid for number, wnid in enumerate(labels, 1)}
    return names, sorted(wnid_of.values())


def prepare_ade20k(archive: Path, root: Path) -> None:
    """Extract ADE20K's scene parsing benchmark and check its label maps.

    Args:
        archive (Path): ``ADEChallengeData2016.zip``, or the folder that holds it.
        root (Path): Folder to extract to, usually ``data/ade``.

    Raises:
        FileNotFoundError: If the archive is missing.
        FileExistsError: If something else is in the way; it is left as it is.
        ValueError: If the archive is damaged or a label map is wrong.
    """
    given = archive
    if given.is_dir():
        archive = given / ADE20K_ARCHIVE
    if not archive.is_file():
        missing = f'{given} is a folder without {ADE20K_ARCHIVE}' if given.is_dir() else f'{given} is missing'
        raise FileNotFoundError(f'{missing}. {_extracted(given, "images/training", root / "ADEChallengeData2016")}Get '
                                'it from http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip')
    written = extract_zip(archive, root)
    _log(f'{archive.name}: {written} files written to {root}.')
    problems = check_ade20k_labels(root / 'ADEChallengeData2016')
    if problems:
        shown = '\n'.join(problems[:10])
        raise ValueError(f'{len(problems)} label maps are wrong, among them:\n{shown}')


def check_ade20k_labels(root: Path) -> list[str]:
    """Check the label maps in the folder ``ADEChallengeData2016``: 8 bit, one channel, 0 .. 150, as large as the image.

    Returns:
        list[str]: One line for each label map that is wrong.
    """
    problems = []
    for path in track(sorted((root / 'annotations').glob('*/*.png')), description='label maps'):
        image = root / 'images' / path.parent.name / f'{path.stem}.jpg'
        with Image.open(path) as labels:
            mode, size, largest = labels.mode, labels.size, int(np.asarray(labels).max())
        if not image.is_file():
            problems.append(f'{path}: its image {image} is missing')
            continue
        with Image.open(image) as opened:
            expected = opened.size
        if mode != 'L':
            problems.append(f'{path}: mode {mode}, expected L (8 bit, one channel)')
        elif largest > ADE20K_NUM_CLASSES:
            problems.append(f'{path}: label {largest}, expected 0 .. {ADE20K_NUM_CLASSES}')
        elif size != expected:
            problems.append(f'{path}: width and height {size}, its image has {expected}')
    return problems


def prepare_coco(archives: Path, root: Path) -> None:
    """Extract COCO 2017 from the archives that exist.

    Args:
        archives (Path): Folder with ``train2017.zip``, ``val2017.zip`` and ``annotations_trainval2017.zip``, or one of
            these files, to extract only that.
        root (Path): Folder to extract to, usually ``data/coco``.

    Raises:
        FileNotFoundError: If none of the archives is there.
        FileExistsError: If something else is in the way; it is left as it is.
        ValueError: If an archive is damaged.
    """
    archives, names = _folder_and_names(archives, COCO_ARCHIVES)
    if not any((archives / name).is_file() for name in names):
        raise FileNotFoundError(f"{_holds(archives)} none of {', '.join(COCO_ARCHIVES)}. "
                                f'{_extracted(archives, "annotations", root)}Get them from '
                                'https://cocodataset.org/#download')
    for name in names:
        if (archives / name).is_file():
            written = extract_zip(archives / name, root)
            _log(f'{name}: {written} files written to {root}.')
        else:
            _log(f'{archives / name} is not there: it is left out.')


def _folder_and_names(given: Path, names: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of archives and the names to use: all of a folder, or the one archive that is named."""
    if not given.is_file():
        return given, names
    if given.name not in names:
        raise ValueError(f'{given} must be a folder with {", ".join(names)}, or one of these files: give downloaded '
                         'files these names')
    return given.parent, (given.name, )


def _holds(folder: Path) -> str:
    return f'{folder} holds' if folder.is_dir() else f'There is no folder {folder}, so it holds'


def _extracted(folder: Path, part: str, target: Path) -> str:
    """Return a sentence if a folder holds the extracted data, else ''."""
    if not (folder / part).is_dir():
        return ''
    link = shlex.join(['ln', '-s', str(folder.absolute()), str(target)])
    return f'The data are extracted there already, so that a link does: {link}. '


def _prepare_imagenet_val(archive: Path, devkit: Path, root: Path, layout: str) -> None:
    wnid_of, wnids = read_imagenet_devkit(devkit)
    val, meta = root / 'val', root / 'meta/val.txt'
    sorted_already = val.is_dir() and any(re.fullmatch(r'n\d{8}', entry.name) for entry in val.iterdir())
    if layout == 'meta' and sorted_already:
        raise FileExistsError(f'{val} has class folders already, which need no {meta}. '
                              'To finish them, choose the layout of class folders.')
    if layout == 'folders' and meta.exists():
        raise FileExistsError(f'{meta} exists: mmpretrain would look for the images it names instead of in class '
                              'folders. Move it away first.')

    if layout == 'folders':
        _move_into_folders(val, wnid_of)
    if archive.is_file():
        written = extract_tar(archive, val, rename=lambda name: _val_path(name, wnid_of, layout))
        _log(f'{archive.name}: {written} images written to {val}.')

    paths = [_val_path(name, wnid_of, layout) for name in wnid_of]
    missing = [path for path in paths if not (val / path).is_file()]
    if missing:
        raise FileNotFoundError(f'{len(missing)} of {len(paths)} validation images are missing from {val}, '
                                f'the first is {missing[0]}.')
    if layout == 'meta':
        _write_meta(meta, [f'{name} {wnids.index(wnid)}' for name, wnid in wnid_of.items()])


def _val_path(name: str, wnid_of: dict[str, str], layout: str) -> str:
    if name not in wnid_of:
        raise ValueError(f'The archive of validation images holds {name}, for which the devkit has no label.')
    return name if layout == 'meta' else f'{wnid_of[name]}/{name}'


def _move_into_folders(val: Path, wnid_of: dict[str, str]) -> None:
    moves = [(val / name, val / wnid / name) for name, wnid in wnid_of.items() if (val / name).is_file()]
    for source, target in moves:
        if target.exists():
            raise FileExistsError(f'Both {source} and {target} exist. Move one of them away first.')
    for source, target in track(moves, description='class folders'):
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


def _write_meta(path: Path, lines: list[str]) -> None:
    """Write an annotation file, except if it exists with the same content."""
    content = '\n'.join(lines) + '\n'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.part')
        partial.write_text(content)
        partial.rename(path)
        _log(f'Wrote {path} with {len(lines)} labels.')
    elif path.read_text().split() != content.split():
        raise FileExistsError(f'{path} exists with other labels than the devkit gives. Move it away first.')


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(message)
