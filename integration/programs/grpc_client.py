"""Calls every method of grpc_server.py over one connection and checks what comes back.

Usage: grpc_client.py ADDRESS:PORT. Exit code 0 only if all is as expected.
"""

import queue
import sys

import grpc

SERVICE = "/picket.test.Peer/"
PATIENCE = 20


def status_of(call):
    """The error that a call ends with, as code and message; what it said before it is dropped."""
    try:
        if isinstance(call, grpc.Call):
            list(call)
        else:
            call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call did not fail")


with grpc.insecure_channel(sys.argv[1]) as channel:
    unary = channel.unary_unary(SERVICE + "Unary")
    answer, call = unary.with_call(b"x" * 1000, timeout=PATIENCE)
    assert answer == b"unary:" + b"x" * 1000, answer[:20]
    assert ("x-served", "unary") in [(key, value) for key, value in call.trailing_metadata()]

    outgoing = queue.Queue()
    chat = channel.stream_stream(SERVICE + "Chat")(iter(outgoing.get, None), timeout=PATIENCE)
    for number in range(5):
        # The next message leaves only when the answer to the one before is here.
        outgoing.put(b"%d" % number)
        assert next(chat) == b"chat:%d" % number
    outgoing.put(None)
    assert list(chat) == []
    assert ("x-served", "5") in [(key, value) for key, value in chat.trailing_metadata()]

    refuse = channel.unary_unary(SERVICE + "Refuse")
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "refused before any message")
    assert status_of(lambda: refuse(b"", timeout=PATIENCE)) == expected

    fail = channel.unary_stream(SERVICE + "Fail")(b"", timeout=PATIENCE)
    assert next(fail) == b"one"
    assert status_of(fail) == (grpc.StatusCode.DATA_LOSS, "failed after a message")

    missing = channel.unary_unary(SERVICE + "Missing")
    assert status_of(lambda: missing(b"", timeout=PATIENCE))[0] == grpc.StatusCode.UNIMPLEMENTED
