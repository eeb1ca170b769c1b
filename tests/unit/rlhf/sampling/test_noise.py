"""The uniform numbers behind every draw."""

from rlhf.sampling.noise import uniforms


def test_noise_is_uniform_and_uncorrelated_between_neighbours() -> None:
    grid = uniforms(1, [(0, i, 0) for i in range(400)], 400)
    assert float(grid.min()) >= 0
    assert float(grid.max()) < 1
    assert abs(float(grid.mean()) - 0.5) < 0.005
    assert abs(float(grid.var()) - 1 / 12) < 0.002
    centred = grid - grid.mean()
    for shifted in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(shifted.mean())) * 12 < 0.02
