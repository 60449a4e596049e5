import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st
from wds2idx import IndexCreator

from data_shards.format.idx import Member, idx_text, place_members

SIZES = st.lists(
    st.dictionaries(
        st.sampled_from(["aerial.jpg", "ground.jpg", "meta.json", "seg.png"]),
        st.integers(0, 2000),
        min_size=1,
    ),
    max_size=5,
)


@given(SIZES)
def test_members_stand_where_tarfile_finds_them(samples):
    buffer, expected, offset = io.BytesIO(), [], 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sizes in enumerate(samples):
            placed, offset = place_members(offset, f"train-{number:09d}", sizes)
            expected += placed
            for part, size in sizes.items():
                info = tarfile.TarInfo(f"train-{number:09d}.{part}")
                info.size = size
                tar.addfile(info, io.BytesIO(b"x" * size))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        found = [Member(*m.name.split(".", 1), m.offset_data, m.size) for m in tar]
    assert found == expected


def test_the_text_is_what_dalis_tool_writes(small_set, tmp_path):
    for tar in small_set.rglob("*.tar"):
        theirs = tmp_path / "theirs.idx"
        with IndexCreator(str(tar), str(theirs), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == theirs.read_bytes()


def test_an_empty_tar_has_an_empty_index():
    assert idx_text([]) == "v1.2 0\n"
