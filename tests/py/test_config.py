"""Where a configuration's values come from, which source wins, and the message for every kind of mistake."""

import os
import pickle
import re
import socket
from pathlib import Path

import pytest
from _cgxffcv import ALLREDUCE_ALGORITHMS, ALLREDUCE_FEEDBACKS

from cgxffcv import recipes
from cgxffcv.app import config, config_file, session
from cgxffcv.app.schema import SCHEMA, WrongValue
from cgxffcv.nearest import suggest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path):
    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def load(*argv, **environ):
    return config.load(list(argv), environ=environ)


def problems(*argv, **environ):
    with pytest.raises(config.ConfigError) as caught:
        load(*argv, **environ)
    return caught.value.problems


def test_algorithms_that_are_read_without_the_core_are_the_cores():
    for name in ALLREDUCE_ALGORITHMS:
        if name != "exact":  # 32 bits mean the same
            assert load(f"--compression.algorithm={name}").compression.algorithm == name
    assert len(problems("--compression.algorithm=exact")) == 1
    for name in ALLREDUCE_FEEDBACKS:
        assert load(f"--compression.error_feedback={name}").compression.error_feedback == name


def test_defaults():
    c = load()
    assert c["compression.bucket_size"] == 1024 and c.compression.bits == 32 and c.training.lr is None
    assert {c.origin(key) for key in SCHEMA} == {"default"}


def test_precedence_file_then_command_line_then_environment(file):
    first = file("training:\n  epochs: 1\n  seed: 1\n  lr: 1\n  batch_size: 1\n", "a.yaml")
    second = file("training:\n  epochs: 2\n  seed: 2\n  lr: 2\n", "b.yaml")
    c = load(
        "--config-file",
        first,
        "--training.epochs=3",
        f"--config-file={second}",
        "--training.seed",
        "3",
        CGXFFCV__TRAINING__EPOCHS="4",
    )
    assert (c.training.batch_size, c.training.lr, c.training.seed, c.training.epochs) == (1, 2.0, 3, 4)
    assert c.origin("training.batch_size") == f"{first}:5"
    assert c.origin("training.lr") == f"{second}:4"
    assert c.origin("training.seed") == "--training.seed"
    assert c.origin("training.epochs") == "environment CGXFFCV__TRAINING__EPOCHS"
    assert c.origin("training.momentum") == "default" and not c.given("training.momentum")


def test_order_of_files_decides(file):
    first, second = file("training: {epochs: 1}", "a.yaml"), file("training: {epochs: 2}", "b.yaml")
    assert load("--config-file", second, "--config-file", first).training.epochs == 1


def test_dotted_environment_names_work_too():
    assert config.load([], environ={"training.lr": "0.5"}).training.lr == 0.5


def test_flat_flags_say_the_same_as_the_full_names():
    flags = (
        "--batch-size 7 --val-batch-size 8 --epochs 9 --base-lr 0.3 --momentum 0.8 --wd 1e-3 --no-cuda --seed 5 "
        "--dist-backend cgx --quantization-bits 4 --quantization-bucket-size 512 --local_rank 1 --log-dir L "
        "--dataset-dir D/"
    )
    c = load(*flags.split())
    t = c.training
    assert (t.batch_size, t.val_batch_size, t.epochs, t.lr, t.momentum) == (7, 8, 9, 0.3, 0.8)
    assert (t.weight_decay, t.device, t.seed, c.comm.backend) == (1e-3, "cpu", 5, "cgx")
    assert (c.compression.bits, c.compression.bucket_size, c.log.dir) == (4, 512, "L")
    assert (c.data.train_dataset, c.data.val_dataset) == ("D/cifar_train.beton", "D/cifar_test.beton")
    assert c.origin("data.val_dataset") == "--dataset-dir"


def test_a_full_name_is_stronger_than_a_flat_flag():
    assert load("--training.lr=1", "--base-lr=2").training.lr == 1
    assert load("--data.val_dataset=x", "--dataset-dir=D").data.val_dataset == "x"


@pytest.mark.parametrize("argv, value", [(["--resume"], "auto"), (["--resume", "runs/x"], "runs/x"), ([], None)])
def test_resume(argv, value):
    assert load(*argv).training.resume == value


def test_ffcv_names_and_yaml_numbers(file):
    path = file(
        "data:\n  gpu: 0\n  num_workers: 8\n  train_dataset: /tmp/a.beton\n  val_dataset: /tmp/b.beton\n"
        "training:\n  batch_size: 512\n  epochs: 24\n  lr: 0.5\n  momentum: 0.9\n  lr_peak_epoch: 5\n"
        "  weight_decay: 5e-4\n  label_smoothing: 0.1\n  lr_tta: True\n  num_workers: 8\n"
    )
    t = load("--config-file", path).training
    assert t.weight_decay == 5e-4 and t.lr_tta is True and t.lr_peak_epoch == 5.0 and t.num_workers == 8


def test_dotted_keys_in_a_file(file):
    assert load("--config-file", file("training.lr: 0.5\ndata: \n")).training.lr == 0.5


@pytest.mark.parametrize(
    "text, expected",
    [
        ("training:\n  lr: 1\n  lr: 2\n", "c.yaml:3: duplicate key 'lr' (also in line 2); keep one of them"),
        ("training: {lr: 1}\ntraining: {lr: 1}\n", "c.yaml:2: duplicate key 'training' (also in line 1)"),
        ("training.lr: 1\ntraining: {lr: 1}\n", "c.yaml:2: duplicate key 'training.lr'"),
        ("training:\n  epoch: 2\n", "c.yaml:2: unknown parameter training.epoch; did you mean training.epochs?"),
        ("training:\n  bits: 2\n", "unknown parameter training.bits; did you mean compression.bits?"),
        ("trainig: {lr: 1}\n", "c.yaml:1: unknown section 'trainig'; did you mean training?"),
        ("zzz: {lr: 1}\n", "unknown section 'zzz'; the sections are data, training"),
        ("training:\n  batch_size: many\n", "c.yaml:2: training.batch_size = 'many': expected a whole number from 1"),
        ("training:\n  batch_size: 2.5\n", "c.yaml:2: training.batch_size = 2.5: expected a whole number"),
        ("training:\n  batch_size: true\n", "training.batch_size = True: expected a whole number"),
        ("training:\n  lr: .nan\n", "training.lr = nan: expected a number from 0"),
        ("training:\n  lr: [1]\n", "c.yaml:2: training.lr = [1]: expected a number from 0"),
        ("training:\n  lr: {a: 1}\n", "c.yaml:2: training.lr: expected a single value, not a section"),
        ("training:\n  lr: [[[1]]]\n", "c.yaml:2: training.lr: expected a single value, not a section"),
        ("training:\n  epochs: 0\n", "training.epochs = 0: expected a number above 0"),
        ("recipe:\n  widths: a,b\n", "recipe.widths = 'a,b': expected numbers with commas between them"),
        ("training:\n  momentum: 1\n", "training.momentum = 1: expected a number from 0 to below 1"),
        ("training:\n  lr_tta: 7\n", "training.lr_tta = 7: expected true or false"),
        ("compression:\n  bits: 16\n", "compression.bits = 16: expected a whole number from 1 to 8, or 32"),
        ("comm:\n  backend: nickel\n", "comm.backend = 'nickel': expected one of cgx, nccl, gloo, mpi"),
        ("data:\n  root: null\n", "data.root = None: expected a folder name"),
        ("training: 3\n", "c.yaml:1: section 'training' must hold values"),
        ("- a\n", "expected sections (data, training"),
        ("training: {lr: 1\n", "not valid YAML"),
        (
            "training:\n  seed: !!python/object/apply:os.getpid []\n",
            "c.yaml:2: training.seed: expected a plain value, not",
        ),
        ("? [a]\n: 1\n", "c.yaml:1: a key must be a plain name"),
    ],
)
def test_mistakes_in_a_file(file, text, expected):
    found = problems("--config-file", file(text))
    assert len(found) == 1 and expected in found[0], found


def test_python_tags_are_never_run(file):
    found = problems("--config-file", file("training:\n  recipe: !!python/name:os.system\n"))
    assert "training.recipe" in found[0]


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--training.epoch=3"], "unknown option --training.epoch; did you mean --training.epochs?"),
        (["--quantisation-bits=3"], "unknown option --quantisation-bits; did you mean --quantization-bits?"),
        (["--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        (["--recipe", "airbench94"], "unknown option --recipe; did you mean --training.recipe?"),
        (["x.yaml"], "unexpected argument 'x.yaml'"),
        (["--batch-size", "0"], "--batch-size: training.batch_size = '0': expected a whole number from 1"),
        (["--batch-size"], "expected one argument"),
        (["--training.lr=fast"], "--training.lr: training.lr = 'fast': expected a number from 0"),
        (["--config-file", "/proc/nowhere/x.yaml"], "--config-file /proc/nowhere/x.yaml: No such file or directory"),
    ],
)
def test_mistakes_on_the_command_line(argv, expected):
    found = problems(*argv)
    assert len(found) == 1 and expected in found[0], found


def test_mistakes_in_the_environment():
    assert (
        "CGXFFCV__TRAINING__LRR: unknown parameter training.lrr; did you mean"
        in problems(CGXFFCV__TRAINING__LRR="1")[0]
    )
    assert "environment CGXFFCV__TRAINING__LR: training.lr = 'x': expected" in problems(CGXFFCV__TRAINING__LR="x")[0]


def test_all_mistakes_are_told_at_once(file):
    assert len(problems("--config-file", file("training: {lr: x, lrr: 1}"), "--epochs=0", CGXFFCV__A__B="1")) == 4


def test_mistakes_survive_pickling():
    """As exceptions of worker processes must, for example those of joblib or concurrent.futures."""
    with pytest.raises(config.ConfigError) as caught:
        load("--training.epochs=x", "--lerning_rate=1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is config.ConfigError and again.problems == caught.value.problems
    assert str(again) == str(caught.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin").write_bytes(b"training: {recipe: \xe9}")
    assert "not UTF-8" in problems("--config-file", str(tmp_path / "latin"))[0]
    assert "Is a directory" in problems("--config-file", str(tmp_path))[0]
    (tmp_path / "big").write_bytes(b"#" * (config_file.MAX_BYTES + 1))
    assert "not a configuration file" in problems("--config-file", str(tmp_path / "big"))[0]


def test_every_flipped_bit_and_cut_of_a_file_is_a_configuration_or_refused(file):
    data = b"training: {lr: 1e-1, recipe: 'demo'}\nlog:\n  dir: x\n"
    damaged = [data[:end] for end in range(len(data))]
    damaged += [
        data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)
    ]
    path, refused = Path(file("")), 0
    for text in damaged:
        path.write_bytes(text)
        try:
            load("--config-file", str(path))
        except config.ConfigError:
            refused += 1
    assert 50 < refused < len(damaged)


HOSTILE = {
    "a bomb of aliases": ("training:\n  lr: &a [1, 1]\nrecipe:\n  widths: [*a, *a, *a]\n", "training.lr = [1, 1]"),
    "an alias of its own list": ("recipe: {widths: &a [1, *a]}", "recipe.widths: expected a single value"),
    "an alias of its own section": ("&a\ntraining: *a\n", "unknown parameter training.training"),
    "an unknown alias": ("training: *b", "not valid YAML"),
    "deep nesting": ("[" * 20_000, "nested too deeply"),
    "deep sections": ("{a: " * 10_000, "nested too deeply"),
    "a deep value": ("training: {lr: " + "[" * 5_000 + "]" * 5_000 + "}", "nested too deeply"),
    "a number as a section": ("1: {lr: 1}", "unknown section '1'"),
    "null as a section": ("null: {lr: 1}", "unknown section 'null'"),
    "a number as a name": ("training: {1: 1}", "unknown parameter training.1"),
    "true as a name": ("training: {true: 1}", "unknown parameter training.true"),
    "a mapping as a name": ("training: {{lr: 1}: 1}", "a key must be a plain name"),
    "a list for a section": ("training: [lr, 1]", "section 'training' must hold values"),
    "a list of sections": ("- training: {lr: 1}", "expected sections"),
    "one word": ("training", "expected sections"),
    "a very long number": ("training: {seed: " + "9" * 50_000 + "}", "training.seed = '99999"),
    "a very long hexadecimal number": ("training: {seed: 0x" + "f" * 50_000 + "}", "training.seed = '0xfff"),
    "a rate without end": ("training: {lr: " + "9" * 50_000 + "}", "training.lr = '99999"),
    "a large exponent": ("training: {lr: 1.0e+999}", "training.lr = inf"),
    "a date": ("training: {seed: 2026-11-29}", "training.seed = '2026-11-29'"),
    "no date": ("training: {seed: !!timestamp soon}", "training.seed = 'soon'"),
    "no boolean": ("training: {lr_tta: !!bool perhaps}", "training.lr_tta = 'perhaps'"),
    "no number": ("training: {seed: !!int many}", "training.seed = 'many'"),
    "an empty number": ("log: {interval: !!float ''}", "log.interval = ''"),
    "a number of nothing": ("training: {seed: !!int '-'}", "training.seed = '-'"),
    "a base": ("training: {seed: !!int '0b'}", "training.seed = '0b'"),
    "bytes": ("training: {recipe: !!binary aGk=}", "not one with the tag 'tag:yaml.org,2002:binary'"),
    "a tag of Python's": ("training: {recipe: !!python/name:os.system }", "a plain value, not one with the tag"),
    "an object": ("training: !!python/object:os.x {lr: 1}", "expected plain values, not ones with the tag"),
    "an object at the top": ("!!python/object/apply:os.abort {training: {lr: 1}}", "expected plain values, not ones"),
    "a tag of nobody's": ("training: {lr: !mine 1}", "not one with the tag '!mine'"),
    "a set": ("training: !!set {lr}", "expected plain values, not ones with the tag"),
    "a tagged name": ("training: {!!python/name:os.system lr: 1}", "a key must be a plain name"),
    "a merge key": ("a: &a {lr: 1}\ntraining: {<<: *a}", "merge keys"),
    "several documents": ("training: {lr: 1}\n---\ntraining: {lr: 2}\n", "expected a single document"),
    "a NUL byte": ("training: {recipe: a\0b}", "not valid YAML"),
    "an escaped NUL byte": ('log: {dir: "a\\0b"}', "log.dir = 'a\\x00b': expected a folder name"),
    "a control character": ('training: {"\\e[31m": 1}', "unknown parameter training.\\x1b[31m"),
    "an endless name": ("training: {" + "x" * 1000 + ": 1}", "unknown parameter training.xxx"),
    "an escape of no character": ('training: {recipe: "\\UFFFFFFFF"}', "not valid YAML"),
    "a tab": ("training:\n\tlr: 1", "not valid YAML"),
    "nothing": ("", "the file is empty"),
    "blanks": (" \n\n", "the file is empty"),
    "a directive": ("%YAML 9.1\n---\ntraining: {lr: 1}", "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_short_messages(file, name):
    text, expected = HOSTILE[name]
    found = problems("--config-file", file(text))
    assert any(expected in line for line in found), found
    assert all(len(line) < 900 and line.isprintable() for line in found)


def test_of_very_many_mistakes_the_first_are_told(file):
    found = problems("--config-file", file("training:\n" + "".join(f"  learning_rate{i}: 1\n" for i in range(2000))))
    assert len(found) == config_file.MOST_PROBLEMS + 1 and found[-1].endswith("fix these first")


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", "/dev/zero", "/dev/null"):
            assert "is not a regular file" in problems("--config-file", str(path))[0]
    assert "File name too long" in problems("--config-file", "x" * 5000)[0]
    assert "null byte" in problems("--config-file", "a\0b")[0]


def test_text_is_taken_as_it_is_written(file):
    for word in ("012", "1e3", "no", "2026-11-29", "0x10", "1:30", "~x", "007.50"):
        assert load("--config-file", file(f"log: {{dir: {word}}}")).log.dir == word
    assert load("--config-file", file('{"log": {"dir": "a\\u00e9"}}')).log.dir == "a\u00e9"
    assert load("--config-file", file("\ufefflog: {dir: x, progress: off}")).log.progress == "off"


YAML_WORDS = [
    *"null true -1 0 1 1e400 -.inf .nan [] [1] [a] [null] [true] [.inf] [1e400] [2026-11-29] 2026-11-29".split(),
    *"a,b 1:2 1:2,3:x 1,,2 : , '\u00e9'".split(),
    *["", "9" * 39, "9" * 5000, "0x" + "f" * 30, "[[1, 2], [3, 4]]", '"\\ud800"'],
]


@pytest.mark.parametrize("key", SCHEMA)
def test_every_parameter_takes_or_refuses_every_kind_of_value(file, key):
    section, name = key.split(".")
    for word in YAML_WORDS:
        raws, found = [word], []
        raws += [raw for raw, _ in config_file.read(file(f"{section}:\n  {name}: {word}\n"), found).values()]
        assert len(found) + len(raws) == 2
        for raw in raws:
            try:
                value = config.convert(SCHEMA[key], key, raw, "here")
                if section == "recipe" and value is not None:
                    recipes.get("demo").replace(**{name: value})
            except (WrongValue, recipes.RecipeError) as error:
                assert len(str(error)) < 300 and str(error).isprintable()
                continue
            text = config.Config({key: config.Value(value, "here")}).to_yaml()
            again = config_file.read(file(text), found)
            assert key == "training.resume" or config.convert(SCHEMA[key], key, again[key][0], "there") == value


def test_a_recipe_fills_only_what_nobody_said():
    c = load("--training.lr=0.5")
    c.fill({"training.lr": 0.1, "training.momentum": 0.9, "recipe.widths": (1, 2, 3)}, "recipe demo")
    assert c.recipe.widths == (1, 2, 3) and not c.has_value("recipe.widths") and c.has_value("training.lr")
    assert (c.training.lr, c.origin("training.lr")) == (0.5, "--training.lr")
    assert (c.training.momentum, c.origin("training.momentum")) == (0.9, "recipe demo")


def test_the_saved_configuration_gives_the_same_values(file, tmp_path):
    c = load(
        "--training.lr=5e-4", "--data.root", "a folder: #1", "--training.recipe=yes", "--log.dir", "12", "--resume"
    )
    config.save(c, tmp_path / "out.yaml")
    again = load("--config-file", str(tmp_path / "out.yaml"))
    assert {k: again[k] for k in SCHEMA if k != "training.resume"} == {
        k: c[k] for k in SCHEMA if k != "training.resume"
    }
    assert again.training.resume is None
    assert [p.name for p in tmp_path.iterdir()] == ["out.yaml"]


def test_the_shipped_file_lists_every_parameter_with_its_default():
    c = load("--config-file", str(ROOT / "default_config.yaml"))
    assert {k: c[k] for k in SCHEMA} == {k: p.default for k, p in SCHEMA.items()}
    assert [k for k in SCHEMA if not c.given(k) and not k.startswith("recipe.")] == ["training.resume"]


def test_values_of_a_recipe(file):
    path = file("recipe:\n  widths: [16, 64, 64]\n  resolutions: [[0, 20], [0.5, 32]]\n  bias_lr: 5e-2\n")
    for c in (
        load("--config-file", path),
        load("--recipe.widths=16,64,64", "--recipe.resolutions=0:20,0.5:32", "--recipe.bias_lr=0.05"),
    ):
        assert c.recipe.widths == (16, 64, 64) and c.recipe.resolutions == ((0, 20), (0.5, 32))
        assert c.recipe.bias_lr == 0.05 and c.recipe.network is None
        assert any(line.split()[:3] == ["recipe.widths", "=", "16,64,64"] for line in c.lines())
        config.save(c, Path(path).with_name("saved.yaml"))
        again = load("--config-file", str(Path(path).with_name("saved.yaml")))
        assert again.as_dict()["recipe"] == c.as_dict()["recipe"]


def told(*argv):
    c = load(*argv)
    session.choose_recipe(c, lambda text: None)
    return c.summary().splitlines()


def test_before_a_run_it_tells_what_differs(file):
    default = str(ROOT / "default_config.yaml")
    for argv in (
        [],
        ["--config-file", default],
        ["--base-lr=0.5", "--seed=0"],
    ):  # the recipe's own rate, the usual seed
        assert told(*argv) == ["configuration: the defaults and recipe resnet9 (--log.config=all shows every value)"]
    lines = told("--config-file", default, "--training.recipe=demo", "--training.lr=0.25", "--recipe.cutout=3")
    assert lines[0].startswith("configuration: what differs from the defaults and recipe demo (--log.config=all")
    assert [line.split() for line in lines[1:]] == [
        ["training.recipe", "=", "demo", "(--training.recipe)"],
        ["training.lr", "=", "0.25", "(--training.lr)"],
        ["recipe.cutout", "=", "3", "(--recipe.cutout)"],
    ]
    lines = told("--log.config=all", "--training.lr=0.25")
    assert len(lines) == len(SCHEMA) + 1
    for line in (
        "training.lr = 0.25 (--training.lr)",
        "training.momentum = 0.9 (recipe resnet9)",
        "data.gpu = 0 (default)",
    ):
        assert line in [" ".join(words.split()) for words in lines]


def test_the_saved_configuration_takes_any_name_of_a_file(tmp_path):
    path = tmp_path / "l\u00e4ufe\udce4 \x85#.yaml"
    path.write_text("log: {dir: x}")
    c = load("--config-file", str(path), f"--data.root={path.parent}/\udce4")
    config.save(c, tmp_path / "saved.yaml")
    again = load("--config-file", str(tmp_path / "saved.yaml"))
    assert (again.log.dir, again.data.root) == ("x", f"{path.parent}/\udce4")


def shown_help(capsys, *argv, **options):
    with pytest.raises(SystemExit) as end:
        config.load(list(argv), environ={}, **options)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_is_short_and_help_all_is_not(capsys):
    short, long = shown_help(capsys, "--help"), shown_help(capsys, "--help-all")
    for word in ("--dataset-dir", "--quantization-bucket-size", "--config-file", "--help-all", *recipes.RECIPES):
        assert word in short
    assert "--training.lr_peak_epoch" not in short and "--recipe." not in short and short.count("\n") < 70
    assert all(f"--{key} " in long for key in SCHEMA) and "CGXFFCV__SECTION__NAME" in long


def test_a_programs_help_shows_what_it_uses(capsys):
    out = shown_help(capsys, "--help", used=["data.train_dataset", "log.progress"])
    assert set(re.findall(r"--[a-z][\w.-]+", out)) - {"--section.name"} == {
        "--help",
        "--config-file",
        "--dataset-dir",
        "--data.train_dataset",
        "--log.progress",
    }
    assert "training:" not in out
    assert config.load(["--epochs=3"], environ={}, used=["log.progress"]).training.epochs == 3


@pytest.mark.parametrize(
    "word, meant",
    [
        ("--lerning_rate", "--training.lr"),
        ("--learning-rate", "--training.lr"),
        ("--lr", "--training.lr"),
        ("--training.learning_rate", "--training.lr"),
        ("--Epochs", "--epochs"),
        ("--num-epochs", "--epochs"),
        ("--batchsize", "--batch-size"),
        ("--training.wd", "--wd"),
        ("--log_dir", "--log-dir"),
        ("--training.workers", "--training.num_workers"),
        ("--data.workers", "--data.num_workers"),
        ("--output", "--log.dir"),
        ("--test-data", "--data.val_dataset"),
        ("--tta", "--training.lr_tta"),
        ("--checkpoint", "--training.resume"),
        ("--xyzzy", None),
        ("--" + "epochs" * 5000, None),
    ],
)
def test_the_name_that_was_meant(word, meant):
    (line,) = problems(f"{word}=1")
    assert line.endswith(f"; did you mean {meant}?") if meant else "mean" not in line


def test_very_long_names_are_compared_with_nothing():
    """That would take quadratic time, for something that nobody can have meant."""
    known = ["x" * 64 + ".lr"]
    assert suggest(known[0], known) == "" and "did you mean" in suggest("y" + "x" * 40, ["x" * 40])
