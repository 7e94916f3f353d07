"""Training that starts from sparse weights: their pattern of zeros is kept, or losing it is refused."""

import re

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from pelk_mm.models import PeLK
from pelk_mm.testing.processes import run_ranks

from ..helpers.equality import assert_same
from . import small_runs
from .small_runs import Net, average_of, sparse_runner, sparsity_hook

BACKBONE = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), kernel_sizes=(9, 9, 9, 9))
SPARSE = ('conv.weight', 'hidden.weight')
DRAWN = [dict(init=init, sparsity=0.4) for init in ('snip', 'erk', 'uniform')]


class WithBackbone(BaseModel):

    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = PeLK(BACKBONE, init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=checkpoint))
        self.head = nn.Linear(10, 4)

    def forward(self, image, label, mode='loss'):
        return dict(loss=nn.functional.cross_entropy(self.head(self.backbone(image)[-1].flatten(1)), label))


def make_runner(work_dir, model, sparsity, **kwargs):
    return sparse_runner(work_dir, sparsity, model, **{'steps': 6, 'interval': 2, **kwargs})


def trained(*arguments, **kwargs):
    """A runner that has trained."""
    runner = make_runner(*arguments, **kwargs)
    runner.train()
    return runner


def live(model, names=SPARSE):
    weights = dict(model.named_parameters())
    return {name: weights[name].detach() != 0 for name in names}


@pytest.fixture
def sparse_file(tmp_path):
    """The weights of a net of which two layers of three are sparse, and nothing else."""
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        for name in SPARSE:
            weight = model.get_parameter(name)
            weight.mul_(torch.rand(weight.shape) < 0.6)
    path = tmp_path / 'sparse.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def pattern(sparse_file):
    state = torch.load(sparse_file, weights_only=True)['state_dict']
    return {name: state[name] != 0 for name in SPARSE}


def test_zeros_stay_and_all_else_trains(tmp_path, sparse_file, pattern):
    before = torch.load(sparse_file, weights_only=True)['state_dict']
    runner = trained(tmp_path, Net(), dict(init='zeros'), ema=True, load_from=sparse_file)
    assert_same(live(runner.model), pattern)
    assert_same(live(average_of(runner)), pattern)
    assert sparsity_hook(runner).masks.keys() == set(SPARSE)
    for name in SPARSE:
        assert (runner.model.get_parameter(name) != before[name])[pattern[name]].all()
    assert runner.model.head.weight.all()


def test_pattern_may_go_on_changing(tmp_path, sparse_file, pattern):
    sparsity = dict(init='zeros', update_interval=2, prune_rate=0.3)
    runner = trained(tmp_path, Net(), sparsity, load_from=sparse_file)
    masks = sparsity_hook(runner).masks
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: int(mask.sum()) for name, mask in pattern.items()}
    assert all((masks[name] != pattern[name]).any() for name in SPARSE)
    assert all((live(runner.model)[name] <= masks[name]).all() for name in SPARSE)


@pytest.mark.parametrize('sparsity', DRAWN, ids=lambda sparsity: sparsity['init'])
def test_new_masks_over_zeros_are_refused_unless_asked_for(tmp_path, sparse_file, pattern, sparsity):
    runner = make_runner(tmp_path, Net(), sparsity, load_from=sparse_file)
    density = pattern['conv.weight'].float().mean()
    with pytest.raises(ValueError, match=re.escape(f"init='{sparsity['init']}' would draw") +
                       rf".*2 of 3 layers.*conv.weight a density of {density:.4f}. Use init='zeros'.*redraw=True"):
        runner.train()
    assert runner.iter == 0
    assert_same(live(runner.model), pattern)

    runner = trained(tmp_path, Net(), dict(sparsity, redraw=True), load_from=sparse_file, steps=1)
    drawn = sparsity_hook(runner).masks
    if sparsity['init'] == 'uniform':
        assert {name: int(mask.sum()) for name, mask in drawn.items()} == {
            name: round(0.6 * mask.numel()) for name, mask in drawn.items()}
    assert any((drawn[name] != pattern[name]).any() for name in SPARSE)


def test_only_what_the_hook_masks_counts(tmp_path, sparse_file, pattern):
    """A dense head beside a sparse backbone may get masks."""
    sparsity = dict(init='uniform', sparsity=0.5, include=r'^head\.')
    runner = trained(tmp_path, Net(), sparsity, load_from=sparse_file)
    assert int(sparsity_hook(runner).masks['head.weight'].sum()) == 64
    # Nothing holds the other zeros.
    assert live(runner.model)['conv.weight'].all()


@pytest.mark.parametrize('zero_head', [False, True])
def test_new_head_stays_dense(tmp_path, sparse_file, pattern, zero_head):
    """One of other classes, which is not loaded, also if all of it is initialised to zero."""
    model = Net(classes=7)
    if zero_head:
        nn.init.zeros_(model.head.weight)
    runner = trained(tmp_path, model, dict(init='zeros'), load_from=sparse_file)
    assert_same(live(runner.model), pattern)
    assert runner.model.head.weight.all()


# Behind a layer of zeros SNIP has no gradient.
@pytest.mark.parametrize(('init', 'zeros'), [('snip', (3, 5)), ('erk', (3, 5)), ('erk', ...), ('uniform', ...)])
def test_other_zeros_are_no_pattern(tmp_path, init, zeros):
    """One by chance, or a layer that starts from zero."""
    model = Net()
    with torch.no_grad():
        (model.head if zeros is ... else model.hidden).weight[zeros] = 0
    sparsity = dict(init=init, sparsity=0.4)
    runner = trained(tmp_path, model, sparsity, steps=1)
    dead = sum(int((~mask).sum()) for mask in sparsity_hook(runner).masks.values())
    assert dead == pytest.approx(0.4 * (432 + 512 + 128), rel=0.05)


@pytest.mark.parametrize('step', [4, 6])
def test_zeros_that_were_just_grown_are_reported(tmp_path, step):
    """A checkpoint that is saved right after an update holds many; that of the last step has none."""
    sparsity = dict(init='uniform', sparsity=0.4, update_interval=2, prune_rate=0.5)
    trained(tmp_path / 'first', Net(), sparsity)
    checkpoint = str(tmp_path / f'first/iter_{step}.pth')
    saved = torch.load(checkpoint, weights_only=False)
    before = {name: saved['state_dict'][name] != 0 for name in (*SPARSE, 'head.weight')}
    runner = make_runner(tmp_path, Net(), dict(init='zeros'), load_from=checkpoint)
    messages = []
    runner.logger.warning = messages.append
    runner.train()
    assert_same(live(runner.model, before), before)
    live_weights = sum(round(0.6 * mask.numel()) for mask in before.values())
    zero = live_weights - sum(int(mask.sum()) for mask in before.values())
    reported = f'counts {zero} of {live_weights} live weights as dead' in ' '.join(map(str, messages))
    assert reported == (step == 4)


@pytest.mark.parametrize('redraw', [False, True])
def test_resuming_is_not_refused(tmp_path, redraw):
    sparsity = dict(init='uniform', sparsity=0.4, redraw=redraw)
    straight = trained(tmp_path / 'straight', Net(), sparsity)
    resumed = trained(tmp_path, Net(), sparsity, resume=True, load_from=str(tmp_path / 'straight/iter_2.pth'))
    assert_same(sparsity_hook(resumed).masks, sparsity_hook(straight).masks)
    assert_same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))


def test_pattern_of_a_pretrained_backbone_stays_at_another_image_size_and_new_masks_are_refused(tmp_path):
    torch.manual_seed(0)
    backbone, path = PeLK(BACKBONE), str(tmp_path / 'pelk.pth')
    for weight in backbone.get_sparse_parameters().values():
        weight.data *= torch.rand(weight.shape) < 0.6
    pattern = {f'backbone.{name}': weight != 0 for name, weight in backbone.get_sparse_parameters().items()}
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in backbone.state_dict().items()}), path)
    runner = trained(tmp_path, WithBackbone(path), dict(init='zeros'), steps=3, side=48)
    assert_same(live(runner.model, pattern), pattern)
    assert runner.model.head.weight.all()
    with pytest.raises(ValueError, match=r'for example backbone\..* a density of 0\.[56]'):
        trained(tmp_path, WithBackbone(path), DRAWN[2], side=32)


def test_two_ranks_keep_the_pattern(tmp_path, sparse_file, pattern):
    """Masks that are drawn and updated on two processes are compared with those of one in test_distributed.py."""
    run_ranks(small_runs.__file__, [(rank, tmp_path, 'zeros') for rank in (0, 1)], tmp_path,
              modules=small_runs.MODULES)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in (0, 1))
    for name, weight in first['weights'].items():
        # Without SyncBN the running statistics are each rank's own.
        assert torch.equal(weight, second['weights'][name]) or 'running' in name, name
    assert_same({name: first['weights'][name] != 0 for name in SPARSE}, pattern)
    assert not torch.equal(first['random'], second['random'])
