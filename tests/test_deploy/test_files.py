"""Trained models from files that may hold anything, deployed ones to files that are whole or not there."""

import errno
import os

import pytest
import torch

from pelk_mm.checkpoints.entries import load_weights_and_meta
from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.deploy import deploy, load_trained, save_deployment
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config

ONE = torch.ones(1)


@pytest.fixture
def cfg():
    return tiny_config('classification')


@pytest.mark.parametrize(('content', 'message'), [
    ([ONE], 'must hold a dict of tensors, .* got a list'),
    (dict(model=dict(a=ONE)), r"must be a checkpoint with a state_dict, it has \['model'\]"),
    (dict(state_dict=[ONE]), 'must be a checkpoint with a state_dict'),
    (dict(state_dict={1: ONE}), 'must have only names in its state_dict, got 1'),
    (dict(state_dict={}, meta='digits'), 'must have a dict as its meta data, got a str'),
])
def test_files_that_hold_no_trained_model_are_named(content, message, cfg, tmp_path):
    path = str(tmp_path / 'odd.pth')
    torch.save(content, path)
    for read in (lambda: load_trained(cfg, path), lambda: publish_file(path, str(tmp_path / 'out.pth'))):
        with pytest.raises(ValueError, match=f'odd.pth {message}'):
            read()
    assert os.listdir(tmp_path) == ['odd.pth']


@pytest.mark.parametrize('value', [ONE, 1, None, [ONE]])
def test_weights_of_another_model_are_refused(value, cfg, tmp_path):
    torch.save(dict(state_dict={'head.fc.bias': value}), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth does not fit the config'):
        load_trained(cfg, str(tmp_path / 'other.pth'))


@pytest.mark.parametrize('meta', [{}, dict(meta=None), dict(meta={}), dict(meta=dict(epoch=3))])
def test_a_model_goes_through_files_with_meta_data_and_without(meta, cfg, tmp_path):
    model = build_tiny_model(cfg)
    torch.save(dict(state_dict=model.state_dict(), optimizer={}, **meta), tmp_path / 'trained.pth')
    weights, found, others = load_weights_and_meta(str(tmp_path / 'trained.pth'))
    # By the versions in it modules tell what they have to translate.
    assert weights._metadata == model.state_dict()._metadata
    assert (found, others) == (meta.get('meta') or {}, ['optimizer'])
    model, found = load_trained(cfg, str(tmp_path / 'trained.pth'))
    deployment = deploy(model, cfg)
    save_deployment(deployment, found, tmp_path / 'new' / 'deployed.pth')
    saved = torch.load(tmp_path / 'new' / 'deployed.pth', weights_only=True)
    assert saved['meta'].get('epoch') == found.get('epoch')
    assert (tmp_path / 'new' / 'deployed.py').read_text(encoding='utf-8') == saved['meta']['cfg']
    assert all(torch.equal(value, saved['state_dict'][name]) for name, value in deployment.model.state_dict().items())


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_after_an_error_nothing_is_left_and_the_next_try_is_not_refused(function, cfg, tmp_path, monkeypatch):

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    deployment = deploy(build_tiny_model(cfg), cfg)
    with monkeypatch.context() as context:
        context.setattr(os, function, fail)
        with pytest.raises(OSError, match='No space left on device'):
            save_deployment(deployment, {}, tmp_path / 'deployed.pth')
    assert os.listdir(tmp_path) == []
    save_deployment(deployment, {}, tmp_path / 'deployed.pth')
    assert sorted(os.listdir(tmp_path)) == ['deployed.pth', 'deployed.py']


@pytest.mark.parametrize('name', ['deployed.pth', 'deployed.py'])
def test_nothing_is_overwritten(name, cfg, tmp_path):
    (tmp_path / name).write_text('precious')
    with pytest.raises(FileExistsError, match=f'{name} exists and is not overwritten'):
        save_deployment(deploy(build_tiny_model(cfg), cfg), {}, tmp_path / 'deployed.pth')
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == 'precious'
