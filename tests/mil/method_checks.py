"""Bags, steps and the checks that hold for every method that reads bags by themselves."""

import torch

from mil.models.base import Bags, Step

DIM, OUTPUTS = 12, 3


def make_bag(tiles, *, seed=0, dtype=torch.float64, dim=DIM):
    return torch.randn(tiles, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_bags(*sizes, labels=None, dtype=torch.float64):
    return Bags.pack([make_bag(n, seed=n, dtype=dtype) for n in sizes], labels)


def make_step(*, index=0, total=10, seed=0):
    return Step(index=index, total=total, generator=torch.Generator().manual_seed(seed))


def one_hot(*classes, outputs=OUTPUTS):
    return torch.nn.functional.one_hot(torch.tensor(classes), outputs).bool()


def loss_of(output):
    """Heads by their weights, plus the penalty, with a task loss that depends on every logit."""
    per_head = (output.heads.logsumexp(dim=2) - output.heads[:, :, 0]).mean(dim=1)
    if output.heads.shape[2] == 1:
        per_head = output.heads.square().mean(dim=(1, 2))
    return (output.weights * per_head).sum() + output.penalty.mean()


def assert_packed_equals_one_by_one(method, bags):
    """Heads, penalties and gradients of a pack are those of its bags alone (dropout off)."""
    method.eval()
    together = method.training_output(bags, make_step())
    tiles = bags.tiles.split(bags.segments.sizes)
    of_bags = [None] * len(tiles) if bags.labels is None else bags.labels
    alone = [
        method.training_output(
            Bags.pack([bag], None if labels is None else labels[None]), make_step()
        )
        for bag, labels in zip(tiles, of_bags, strict=True)
    ]
    heads = torch.cat([out.heads for out in alone], dim=1)
    penalty = torch.cat([out.penalty for out in alone])
    torch.testing.assert_close(together.heads, heads, rtol=0, atol=1e-10)
    torch.testing.assert_close(together.penalty, penalty, rtol=0, atol=1e-10)
    assert all(torch.equal(out.weights, together.weights) for out in alone)
    of_pack = _gradients(method, together.heads.square().sum() + together.penalty.sum())
    one_by_one = _gradients(method, heads.square().sum() + penalty.sum())
    torch.testing.assert_close(of_pack, one_by_one, rtol=0, atol=1e-8)


def assert_order_does_not_matter(method):
    method.eval()
    bag = make_bag(23)
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(1))
    straight, shuffled = method(bag), method(bag[order])
    torch.testing.assert_close(shuffled.logits, straight.logits, rtol=0, atol=1e-11)
    torch.testing.assert_close(shuffled.attention, straight.attention[order], rtol=0, atol=1e-11)
    torch.testing.assert_close(shuffled.scores, straight.scores[:, order], rtol=0, atol=1e-11)


def assert_tile_logits_are_those_of_one_tile_bags(method):
    method.eval()
    bag = make_bag(17)
    one_by_one = torch.stack([method(tile[None]).logits for tile in bag])
    torch.testing.assert_close(method.tile_logits(bag), one_by_one, rtol=0, atol=1e-11)


def assert_gradients_reach(method, bags_of_seed, *, but_for=()):
    """Over a few bags, so that no ReLU unit is out of play throughout."""
    method.eval()
    for seed in range(4):
        loss_of(method.training_output(bags_of_seed(seed), make_step(seed=seed))).backward()
    for name, parameter in method.named_parameters():
        if not name.endswith(tuple(but_for)):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def assert_bfloat16_is_finite(make_method, bags_of_size, sizes):
    """As the weights' type, and as autocast's."""
    for tiles in sizes:
        for autocast in (False, True):
            method = make_method().to(torch.float32 if autocast else torch.bfloat16)
            bags = bags_of_size(tiles)
            wanted = torch.float32 if autocast else torch.bfloat16
            bags = Bags((100 * bags.tiles).to(wanted), bags.segments, bags.labels)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = loss_of(method.training_output(bags, make_step()))
                output = method.eval()(bags.tiles[:tiles])
            loss.backward()
            assert torch.isfinite(loss), (tiles, autocast)
            answer = (output.logits, output.scores, output.attention)
            assert all(torch.isfinite(part).all() for part in answer), (tiles, autocast)
            grads = [p.grad for p in method.parameters() if p.grad is not None]
            assert all(torch.isfinite(grad).all() for grad in grads), (tiles, autocast)


def assert_answers_are_sound(method, sizes):
    for tiles in sizes:
        output = method.eval()(make_bag(tiles, seed=tiles))
        assert torch.isfinite(output.logits).all()
        assert output.scores.shape[1] == tiles
        assert output.attention.shape == (tiles,)
        assert (output.attention >= 0).all()
        torch.testing.assert_close(output.attention.sum().item(), 1.0, rtol=0, atol=1e-6)
        training = method.train().training_output(make_bags(tiles), make_step())
        assert torch.isfinite(loss_of(training))


def _gradients(method, loss):
    parameters = list(method.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
