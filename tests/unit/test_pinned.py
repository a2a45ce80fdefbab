"""Pinned buffers are few, within their limit, and used again only when their upload is done."""

import gc

import torch
from uploads import Upload, ordinary

from openslip.data.pinned import LIMIT, Buffer, Buffers, allocated


def buffers(size: int = 1000, limit: int = 2048) -> Buffers:
    return Buffers(size, limit, allocate=ordinary)


def taken(from_buffers: Buffers) -> Buffer:
    buffer = from_buffers.take()
    assert buffer is not None
    return buffer


def test_torch_page_locks_powers_of_two():
    assert [allocated(size) for size in (1, 2, 3, 64, 65, 4096 * 3 * 150_528)] == [1, 2, 4, 64, 128, 2**31]


def test_the_limit_counts_what_torch_allocates():
    assert [buffers(1000, limit).count for limit in (1000, 1023, 1024, 2047, 2048, 10**6)] == [0, 0, 1, 1, 2, 4]
    assert Buffers(4096 * 3 * 150_528).count == 2
    assert 2 * allocated(4096 * 3 * 150_528) == LIMIT


def test_without_a_free_buffer_a_batch_lies_in_ordinary_memory():
    some = buffers()
    lent = [some.take(), some.take()]
    assert None not in lent
    assert some.take() is None
    assert buffers(limit=0).take() is None


def test_memory_that_is_uploaded_is_used_again():
    some = buffers()
    first = taken(some)
    first.give_back(Upload(is_done=True))
    assert taken(some).memory is first.memory


def test_memory_that_is_being_uploaded_is_not_used_while_there_is_other():
    some = buffers()
    first = taken(some)
    upload = Upload(is_done=False)
    first.give_back(upload)
    second = taken(some)
    assert second.memory is not first.memory
    assert not upload.was_waited_for
    second.give_back(Upload(is_done=True))
    assert taken(some).memory is second.memory  # the later one, as its upload is done


def test_where_all_memory_is_being_uploaded_the_oldest_upload_is_waited_for():
    some = buffers()
    first, second = taken(some), taken(some)
    uploads = [Upload(is_done=False), Upload(is_done=False)]
    for buffer, upload in zip((first, second), uploads, strict=True):
        buffer.give_back(upload)
    assert taken(some).memory is first.memory
    assert [upload.was_waited_for for upload in uploads] == [True, False]


def test_a_batch_that_is_never_uploaded_does_not_keep_its_place():
    some = buffers()
    lost = [taken(some), taken(some)]
    assert some.take() is None
    del lost
    gc.collect()
    assert some.take() is not None


def test_columns_lie_side_by_side_until_the_buffer_is_full():
    buffer = taken(buffers(256, 256))
    first, second = buffer.empty((3, 2), torch.int64), buffer.empty((100,), torch.bool)
    assert first is not None
    assert second is not None
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((3, 2), torch.int64, (100,), torch.bool)
    first.fill_(-1)
    second.fill_(True)
    assert (first == -1).all()
    assert second.all()
    assert second.data_ptr() - first.data_ptr() == 64
    assert buffer.empty((65,), torch.uint8) is None
    assert buffer.empty((64,), torch.uint8) is not None
