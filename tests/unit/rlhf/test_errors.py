from rlhf.errors import UserError


def test_a_message_says_where_what_and_the_way_out() -> None:
    error = UserError("completion 3 has no rank.", where="rankings.jsonl, line 41", fix="Give it one.")
    assert str(error) == "rankings.jsonl, line 41: completion 3 has no rank.\n  Give it one."


def test_a_message_needs_neither_a_place_nor_a_cure() -> None:
    assert str(UserError("nothing to do")) == "nothing to do"
    assert str(UserError("nothing to do", fix="Rest.")) == "nothing to do\n  Rest."


def test_an_error_in_another_place_keeps_what_is_wrong_and_the_way_out() -> None:
    error = UserError("no rank", where="completion 3", fix="Give it one.").at("rankings.jsonl, line 41")
    assert (error.what, error.where, error.fix) == ("no rank", "rankings.jsonl, line 41", "Give it one.")


def test_another_place_may_allow_a_better_way_out() -> None:
    assert UserError("no rank", fix="Give it one.").at("line 41", fix="Remove it.").fix == "Remove it."
