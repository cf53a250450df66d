"""The results table, character by character."""

from timm_wsms.evaluation import Row, markdown_table, text_table

ROWS = [
    Row("resnet20_cifar", 269_722, 40_551_040, 90.125, {8: 51.25, 32: 97.0}),
    Row("wsms", 1_290_000, 6_889_000_000, 92.0, {8: 60.0}),
]


def test_text():
    assert text_table(ROWS) == (
        "model           parameters  multiplications  accuracy %  8 px  32 px\n"
        "--------------  ----------  ---------------  ----------  ----  -----\n"
        "resnet20_cifar     0.270 M           40.6 M       90.12  51.2   97.0\n"
        "wsms               1.290 M        6,889.0 M       92.00  60.0      –"
    )


def test_markdown_without_sizes():
    rows = [Row("resnet20_cifar", 269_722, 40_551_040, 90.0)]
    assert markdown_table(rows) == (
        "| model | parameters | multiplications | accuracy % |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| resnet20_cifar | 0.270 M | 40.6 M | 90.00 |"
    )


def test_top5_has_a_column_where_it_is_known():
    rows = [Row("a", 1_000_000, 2_000_000, 50.0, top5=75.125), Row("b", 1_000_000, 2_000_000, 40.0)]
    assert text_table(rows).splitlines()[0].split("  ")[-1] == "top-5 %"
    assert [line.split()[-1] for line in text_table(rows).splitlines()[2:]] == ["75.12", "–"]


def test_the_images_have_a_column_where_their_sizes_differ():
    rows = [
        Row("a", 1_000_000, 2_000_000, 50.0, input_size=(3, 112, 96)),
        Row("b", 1, 1, 50.0, input_size=[3, 128, 128]),
    ]
    lines = markdown_table([*rows, Row("c", 1, 1, 50.0)]).splitlines()
    assert lines[0].startswith("| model | image size | parameters")
    assert [line.split(" | ")[1] for line in lines[2:]] == ["112×96", "128×128", "–"]
    assert "image size" not in text_table(rows[:1])
