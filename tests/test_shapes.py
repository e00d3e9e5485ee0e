import pytest
import torch

from flowmatch_rl.shapes import append_dims, check_same_shape, check_shape, even_rows
from tests.combinations import one_test


@one_test
@pytest.mark.parametrize(
    ("t_shape", "x_shape", "wanted"),
    [
        ((), (4, 3), (1, 1)),
        ((), (), ()),
        ((4,), (4, 3), (4, 1)),
        ((4,), (4,), (4,)),
        ((3,), (3, 3), (3, 1)),
        ((1,), (1, 1), (1, 1)),
        ((4, 5), (4, 5, 3), (4, 5, 1)),
        ((4,), (4, 5, 3), (4, 1, 1)),
        ((4, 1), (4, 5, 3), (4, 1, 1)),
        ((1, 5), (4, 5, 3), (1, 5, 1)),
        ((4, 5, 3), (4, 5, 3), (4, 5, 3)),
    ],
)
def test_a_prefix_is_lined_up_from_the_left(
    t_shape: tuple[int, ...], x_shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert append_dims(torch.zeros(t_shape), like=torch.zeros(x_shape)).shape == wanted


def test_each_sample_keeps_its_own_value_when_batch_and_features_have_one_size() -> None:
    t = torch.arange(3.0)
    product = append_dims(t, like=torch.ones(3, 3)) * torch.ones(3, 3)
    assert torch.equal(product, torch.tensor([[0.0] * 3, [1.0] * 3, [2.0] * 3]))


@one_test
@pytest.mark.parametrize(
    ("t_shape", "x_shape"),
    [((3,), (4, 3)), ((4, 1, 1), (4, 3)), ((4, 3), (4, 5, 3)), ((5,), (1, 5)), ((1,), ()), ((256, 1), (256,))],
)
def test_a_shape_that_is_no_prefix_is_refused_with_both_shapes_named(
    t_shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="prefix") as caught:
        append_dims(torch.zeros(t_shape), like=torch.zeros(x_shape))
    assert str(t_shape) in str(caught.value)
    assert str(x_shape) in str(caught.value)


def test_appended_dims_share_storage_and_gradient_with_the_times() -> None:
    t = torch.rand(4, requires_grad=True)
    append_dims(t, like=torch.zeros(4, 3)).sum().backward()
    assert torch.equal(t.grad, torch.ones(4))


def test_equal_shapes_pass_and_unequal_ones_are_named() -> None:
    check_same_shape(x=torch.zeros(2, 3), y=torch.ones(2, 3), z=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x \(256,\), y \(256, 1\)"):
        check_same_shape(x=torch.zeros(256), y=torch.zeros(256, 1))
    with pytest.raises(ValueError):
        check_same_shape(x=torch.zeros(2, 3), y=torch.zeros(2, 3), z=torch.zeros(3, 2))


def test_a_wanted_shape_passes_and_another_one_is_named() -> None:
    check_shape("noise", torch.zeros(2, 3), (2, 3))
    with pytest.raises(ValueError, match=r"noise of shape \(2, 3\), got \(3, 2\)"):
        check_shape("noise", torch.zeros(3, 2), (2, 3))
    with pytest.raises(ValueError):
        check_shape("noise", torch.zeros(2, 1), (2, 3))


def test_even_rows_reach_from_the_first_to_the_last() -> None:
    assert even_rows(9, 3).tolist() == [0, 4, 8]
    assert even_rows(4, 10).tolist() == [0, 1, 2, 3]
    assert even_rows(1, 10).tolist() == [0]
    assert int(even_rows(30_000_000, 5)[-1]) == 29_999_999
