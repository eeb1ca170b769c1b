from benchmarks.machine import memory_gib, processor_name


def test_the_machine_is_read_from_what_the_kernel_says() -> None:
    assert processor_name("processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\n") == "Some CPU @ 2.50GHz"
    assert processor_name("") is None
    assert memory_gib("MemTotal:       16777216 kB\n") == 16.0
    assert memory_gib("") is None
