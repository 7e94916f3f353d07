"""The names of ConvNeXt's parts in the code bases that have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """Names of modules and parameters; ``{stage}`` and ``{block}`` count from 0, ``{number}`` is ``stage + 1``.

    ``{odd}`` and ``{even}`` are ``2 * stage + 1`` and ``2 * stage``.

    Attributes:
        stem (tuple[str, str]): Convolution and norm.
        downsample (tuple[str, str]): Norm and convolution before a stage.
        stage (str): What computes the output of a stage.
        block (str): Precedes the names of a block's parts.
        mixer (str): The depthwise convolution.
        norm (str): The norm behind it.
        pointwise (tuple[str, str]): The two pointwise layers.
        act (str): The activation between them.
        grn (tuple[str, str]): Parameters of V2's global response normalization: gamma and beta.
        gamma (str): The parameter of the layer scale.
        output_norms (tuple[str, ...]): Norms of outputs; those without a stage are the last stage's.
        classifier (str): The linear layer.
    """

    stem: tuple[str, str] = ('downsample_layers.0.0', 'downsample_layers.0.1')
    downsample: tuple[str, str] = ('downsample_layers.{stage}.0', 'downsample_layers.{stage}.1')
    stage: str = 'stages.{stage}'
    block: str = 'stages.{stage}.{block}'
    mixer: str = 'dwconv'
    norm: str = 'norm'
    pointwise: tuple[str, str] = ('pwconv1', 'pwconv2')
    act: str = 'act'
    grn: tuple[str, str] = ('grn.gamma', 'grn.beta')
    gamma: str = 'gamma'
    output_norms: tuple[str, ...] = ('norm', 'norm{stage}')
    classifier: str = 'head'

    def outer_parts(self, stages: int) -> Iterator[tuple[str, str]]:
        """Yield the modules between the blocks, each with its name here."""
        yield from zip(self.stem, OURS.stem)
        for stage in range(1, stages):
            for theirs, ours in zip(self.downsample, OURS.downsample):
                yield fill(theirs, stage), fill(ours, stage)

    def block_parts(self, stage: int, block: int) -> Iterator[tuple[str, str]]:
        """Yield the modules of a block that have a weight and a bias, each with its name here."""
        for theirs, ours in zip((self.mixer, self.norm, *self.pointwise), (OURS.mixer, OURS.norm, *OURS.pointwise)):
            yield f'{fill(self.block, stage, block)}.{theirs}', f'{fill(OURS.block, stage, block)}.{ours}'

    def block_scales(self, stage: int, block: int) -> Iterator[tuple[str, str]]:
        """Yield the parameters of a block that only some ConvNeXts have, each with its name here."""
        for theirs, ours in zip((self.gamma, *self.grn), (OURS.gamma, *OURS.grn)):
            yield f'{fill(self.block, stage, block)}.{theirs}', f'{fill(OURS.block, stage, block)}.{ours}'

    def norms(self, stages: int) -> Iterator[tuple[str, str]]:
        """Yield the norms that outputs may have, each with its name here."""
        for theirs in self.output_norms:
            for stage in range(stages) if theirs != fill(theirs, 0) else [stages - 1]:
                yield fill(theirs, stage), f'norm{stage}'


def fill(name: str, stage: int, block: int = 0) -> str:
    """Return a name of a :class:`Naming` for a stage and a block."""
    return name.format(stage=stage, block=block, number=stage + 1, odd=2 * stage + 1, even=2 * stage)


OURS = Naming(block='stages.{stage}.blocks.{block}', mixer='mixer.mixer.convs.large', output_norms=('norm{stage}', ),
              pointwise=('pointwise_conv1', 'pointwise_conv2'), classifier='head.fc')

_TIMM = Naming(
    stem=('stem.0', 'stem.1'), downsample=('stages.{stage}.downsample.0', 'stages.{stage}.downsample.1'),
    block='stages.{stage}.blocks.{block}', mixer='conv_dw', pointwise=('mlp.fc1', 'mlp.fc2'), act='mlp.act',
    grn=('mlp.grn.weight', 'mlp.grn.bias'), output_norms=('head.norm', 'norm_pre'), classifier='head.fc')

NAMINGS = {
    'facebookresearch': Naming(),
    'mmpretrain': Naming(mixer='depthwise_conv', pointwise=('pointwise_conv1', 'pointwise_conv2'),
                         output_norms=('norm{stage}', ), classifier='head.fc'),
    'timm': _TIMM,
    # As features_only=True builds it.
    'timm (features_only)': Naming(
        stem=('stem_0', 'stem_1'), downsample=('stages_{stage}.downsample.0', 'stages_{stage}.downsample.1'),
        stage='stages_{stage}', block='stages_{stage}.blocks.{block}', mixer=_TIMM.mixer, pointwise=_TIMM.pointwise,
        act=_TIMM.act, grn=_TIMM.grn, output_norms=_TIMM.output_norms, classifier=_TIMM.classifier),
    'torchvision': Naming(
        stem=('features.0.0', 'features.0.1'), downsample=('features.{even}.0', 'features.{even}.1'),
        stage='features.{odd}', block='features.{odd}.{block}', mixer='block.0', norm='block.2',
        pointwise=('block.3', 'block.5'), act='block.4', gamma='layer_scale', output_norms=('classifier.0', ),
        classifier='classifier.2'),
    'transformers': Naming(
        stem=('embeddings.patch_embeddings', 'embeddings.layernorm'),
        downsample=('encoder.stages.{stage}.downsampling_layer.0', 'encoder.stages.{stage}.downsampling_layer.1'),
        stage='encoder.stages.{stage}', block='encoder.stages.{stage}.layers.{block}', norm='layernorm',
        grn=('grn.weight', 'grn.bias'), gamma='layer_scale_parameter',
        output_norms=('layernorm', 'hidden_states_norms.stage{number}'), classifier='classifier'),
}
