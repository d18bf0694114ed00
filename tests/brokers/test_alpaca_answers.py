"""What Alpaca's answers prove, on samples: done, never, later, or nothing."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from desk_server.brokers import BrokerHasIt, BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.brokers.alpaca.answers import Answer, decoded, is_key_refused, is_not_found, result, retry_after_s

THEIRS = "9d2f1c1e-58d2-4a0d-8d55-21f3f2a0c9b7"


def answer(status: int, body: str = "", **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body.encode())


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_refusal_with_alpacas_code_is_definite(status):
    """Code and message are passed on."""
    with pytest.raises(BrokerRejected) as no:
        result(answer(status, '{"code": 40310000, "message": "insufficient buying power", "buying_power": "3"}'))
    assert (no.value.code, no.value.message) == ("40310000", "insufficient buying power")
    assert not isinstance(no.value, BrokerHasIt)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, "<html>Bad Request</html>"),
        (403, "<html><h1>403 Forbidden</h1></html>"),
        (403, '{"message": "forbidden."}'),
        (403, '{"code": 40310000, "message": "insuff'),
        (403, '{"code": "40310000", "message": "a code is a number"}'),
        (403, '{"code": true, "message": "a code is a number"}'),
        (403, '{"code": 40310000}'),
        (403, '["code", "message"]'),
        (422, ""),
        (401, '{"message": "unauthorized."}'),
        (401, '{"code": 40110000, "message": "request is not authorized"}'),
        (404, '{"code": 40410000, "message": "order not found"}'),
        (404, '{"message": "Not Found"}'),
        (408, '{"code": 40010000, "message": "late"}'),
        (409, '{"code": 40910000, "message": "conflict"}'),
        (429, "slow down"),
        (500, '{"code": 50010000, "message": "internal server error occurred"}'),
        (502, "<html>Bad Gateway</html>"),
        (503, '{"code": 50310000, "message": "service unavailable"}'),
        (504, ""),
        (302, ""),
        (200, "<html>welcome to the hotel</html>"),
        (200, '{"id": "x", "sta'),
        (200, '{"qty": NaN}'),
        (200, "[" * 100_000),
        (200, '{"qty": "\xff'),
    ],
)
def test_anything_else_proves_nothing(status, body):
    """Whatever is not the broker's own no leaves it unknown."""
    with pytest.raises(BrokerUnknown):
        result(answer(status, body))


def test_an_answer_is_read_exactly():
    """Numbers keep all their digits, and an empty answer is one."""
    assert result(answer(200, '{"a": 0.30000000000000004, "b": 12}')) == {"a": Decimal("0.30000000000000004"), "b": 12}
    assert result(answer(204)) is None
    assert str(decoded(b"1e-8")) == "1E-8"


def test_a_name_that_is_taken_means_look_it_up():
    """422/40010001 has other messages too: the text decides."""
    with pytest.raises(BrokerHasIt):
        result(answer(422, '{"code": 40010001, "message": "client_order_id must be unique"}'))
    with pytest.raises(BrokerRejected) as no:
        result(answer(422, '{"code": 40010001, "message": "qty must be > 0"}'))
    assert type(no.value) is BrokerRejected


def test_an_asset_that_does_not_exist_is_a_definite_no():
    """Unlike an order that is not found."""
    with pytest.raises(BrokerRejected):
        result(answer(404, '{"code": 40410000, "message": "asset not found for ZZZZ"}'))


def test_what_a_refusal_says_names_nobody_elses_order():
    """A wash trade's error quotes the other order, in fields and sometimes in its text."""
    body = (
        f'{{"code": 40310000, "message": "potential wash trade detected against {THEIRS} (d1.bob.s.01J). use complex'
        f' orders", "existing_order_id": "{THEIRS}", "related_orders": ["{THEIRS}"], "reject_reason": "opposite"}}'
    )
    with pytest.raises(BrokerRejected) as no:
        result(answer(403, body))
    assert no.value.message == "potential wash trade detected against …. use complex orders"
    for said in (str(no.value), no.value.message, repr(no.value.args)):
        assert THEIRS not in said and "bob" not in said


def test_what_a_refusal_says_tells_no_figure_of_the_account():
    """What others hold on a shared account is nobody's business; what the order itself lacks (422) is told in full."""
    with pytest.raises(BrokerRejected) as no:
        result(
            answer(
                403,
                '{"code": 40310000, "message": "insufficient qty available for order (requested: 10, available: 7)",'
                ' "available": "7", "held_for_orders": "3"}',
            )
        )
    assert no.value.message == "insufficient qty available for order"
    with pytest.raises(BrokerRejected) as no:
        result(answer(422, '{"code": 40010001, "message": "qty must be > 0 (got 0)"}'))
    assert no.value.message == "qty must be > 0 (got 0)"


def test_a_message_is_short_and_on_one_line():
    """Whatever the broker writes ends up in logs and answers."""
    with pytest.raises(BrokerRejected) as no:
        result(answer(422, '{"code": 1, "message": "a\\nb\\u0000c\\u001b[31m%s"}' % ("x" * 5000)))
    assert no.value.message.isprintable() and len(no.value.message) == 300


NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DATE = "Fri, 20 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 3.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:20 GMT", "date": DATE}, 20.0),
        ({"x-ratelimit-reset": str(int(NOW.timestamp()) + 12), "date": DATE}, 12.0),
        ({"x-ratelimit-reset": str(int(NOW.timestamp()) + 12)}, 12.0),
        ({"x-ratelimit-reset": "0", "date": DATE}, 0.1),
        ({"x-ratelimit-reset": "99999999999", "date": DATE}, 65.0),
        ({"retry-after": "1e999"}, 3.0),
        ({"retry-after": "soon", "x-ratelimit-reset": "never"}, 3.0),
        ({"retry-after": "-5"}, 3.0),
    ],
)
def test_how_long_to_wait_is_sane(headers, wait_s):
    """Retry-After, then the limit's reset, then a guess; between 0.1 and 65 s."""
    assert retry_after_s(headers, NOW) == wait_s
    with pytest.raises(BrokerThrottled):
        result(Answer(429, headers, b'{"code": 42910000, "message": "rate limit exceeded"}'))


def test_our_clock_does_not_matter():
    """The reset is reckoned from the answer's own date."""
    headers = {"x-ratelimit-reset": str(int(NOW.timestamp()) + 12), "date": DATE}
    for ours in (datetime(2020, 1, 1, tzinfo=UTC), datetime(2033, 1, 1, tzinfo=UTC)):
        assert retry_after_s(headers, ours) == 12.0


def test_who_refuses_the_key():
    """The broker itself, not something in front of it."""
    assert is_key_refused(answer(401, '{"message": "unauthorized."}'))
    assert not is_key_refused(answer(401, "<html>log in to this network</html>"))
    assert not is_key_refused(answer(403, '{"code": 40310000, "message": "no"}'))


def test_who_says_that_there_is_no_such_order():
    """A 404 of a wrong address proves nothing."""
    assert is_not_found(answer(404, '{"code": 40410000, "message": "order not found for x"}'))
    assert not is_not_found(answer(404, '{"message": "Not Found"}'))
    assert not is_not_found(answer(404, "<html>not here</html>"))
    assert not is_not_found(answer(422, '{"code": 40410000, "message": "order not found for x"}'))
