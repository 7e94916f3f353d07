"""Run a classifier, segmentor or detector on an image, a folder of images or a video, and draw its predictions."""

import argparse
import sys
from pathlib import Path

import cv2
import mmcv
from mmengine.config import DictAction
from rich.progress import track

from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.deploy import list_images
from pelk_mm.deploy.demo import ExportedDemo, ModelDemo
from pelk_mm.engine.image_files import image_file_error
from pelk_mm.engine.launch import load_config

# Images that OpenCV writes in 8 bits and every viewer shows.
WRITTEN = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('inputs', help='image, folder of images, or video')
    parser.add_argument(
        'model', help='config, or a file of tools/model_converters/export.py, .onnx or .xml; of a detector it holds '
        'the backbone, whose feature maps are drawn')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint, file or URL; needed with a config')
    parser.add_argument('--out-dir', required=True, help='folder for the drawn images; files in it are not overwritten')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a detection, default 0.3')
    parser.add_argument('--device', help='where a config runs, e.g. cpu or cuda:1; by default a GPU if there is one')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    add_trust_option(parser)
    args = parser.parse_args()
    exported = args.model.endswith(('.onnx', '.xml'))
    if exported and args.checkpoint:
        parser.error('an exported file takes no checkpoint')
    if not exported and not args.checkpoint:
        parser.error('a config needs a checkpoint')
    source, out_dir = Path(args.inputs), Path(args.out_dir)
    if not source.exists():
        parser.error(f'inputs: no such file or folder, {source}')
    is_video = source.suffix.lower() in VIDEOS
    files = [source] if source.is_file() else list_images(source)
    targets = [out_dir / target_name(file) for file in files]
    try:
        refuse_existing(*targets, instead='--out-dir')
    except FileExistsError as error:
        parser.error(str(error))

    demo = ExportedDemo(args.model) if exported else ModelDemo(
        load_config(args.model, args.cfg_options), args.checkpoint, args.device, args.score_thr)
    # All of them before the first is drawn.
    for file in files if demo.pipeline.plain_files and not is_video else ():
        if damage := image_file_error(str(file)):
            parser.error(f'inputs: {file} {damage}')
    out_dir.mkdir(parents=True, exist_ok=True)
    if is_video:
        draw_video(demo, source, targets[0])
        return
    for file, target in track(list(zip(files, targets)), 'Images', disable=len(files) == 1):
        drawn, found = demo(demo.pipeline.load(file))
        mmcv.imwrite(drawn[..., ::-1], str(target))
        print(f'{target}: {found}')


def target_name(file: Path) -> str:
    """Return the name of the drawn file, in a format that OpenCV writes and viewers show."""
    suffix = file.suffix.lower()
    return f'{file.stem}.mp4' if suffix in VIDEOS else file.name if suffix in WRITTEN else f'{file.name}.png'


def draw_video(demo, source: Path, target: Path) -> None:
    """Draw every frame of a video into another of the same frame rate."""
    frames = mmcv.VideoReader(str(source))
    if not len(frames):
        sys.exit(f'{source} is no video, or none that OpenCV reads')
    writer = None
    for frame in track(frames, 'Frames', total=len(frames)):
        if frame is None:
            break
        drawn = demo(frame)[0]
        if writer is None:
            size = drawn.shape[1::-1]
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*'mp4v'), frames.fps or 25, size)
        writer.write(drawn[..., ::-1])
    if writer is not None:
        writer.release()
    print(f'{target}: {len(frames)} frames')


if __name__ == '__main__':
    main()
