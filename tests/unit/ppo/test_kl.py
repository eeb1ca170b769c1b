"""KL estimators and the adaptive coefficient."""

import math

import pytest
import torch

from ppo.kl import adapt, k1, k3


def test_both_estimators_average_to_the_exact_kl() -> None:
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    exact = float((policy * (policy / reference).log()).sum())
    for estimator in (k1, k3):
        mean = float((policy * estimator(policy.log(), reference.log())).sum())
        assert mean == pytest.approx(exact, rel=1e-12)


def test_k3_is_never_negative_and_zero_only_where_both_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(100, generator=generator), torch.randn(100, generator=generator)
    assert (k3(a, b) > 0).all()
    assert (k3(a, a) == 0).all()


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.0064), (60.0, 1 + 0.2 * 0.0064), (0.0, 1 - 0.2 * 0.0064)],
)
def test_the_coefficient_follows_zieglers_rule_with_a_clipped_error(kl: float, factor: float) -> None:
    assert adapt(0.1, kl=kl, target=6.0, num_responses=64, horizon=10_000) == pytest.approx(
        0.1 * factor, rel=1e-12
    )


def test_a_steady_excess_raises_the_coefficient_exponentially() -> None:
    beta = 0.05
    for _ in range(100):
        beta = adapt(beta, kl=100.0, target=5.0, num_responses=64, horizon=10_000)
    assert beta == pytest.approx(0.05 * math.exp(100 * math.log1p(0.2 * 0.0064)))
