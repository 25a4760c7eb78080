use std::path::PathBuf;

use serde_json::json;

use super::*;

/// A file of these bytes.
fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Each row with its place, or the error.
fn rows_of(path: &Path) -> Result<Vec<(String, Value)>, String> {
    let mut rows = Vec::new();
    let mut take = |row: Row| {
        rows.push((row.place.to_string(), Value::Object(row.cells)));
        Ok(())
    };
    read(path, Format::of(path).unwrap(), &mut take).map_err(|e| e.to_string())?;
    Ok(rows)
}

fn rows(name: &str, content: &[u8]) -> Result<Vec<(String, Value)>, String> {
    let (_folder, path) = file(name, content);
    rows_of(&path)
}

fn at(place: &str, value: Value) -> (String, Value) {
    (place.to_owned(), value)
}

/// The error, which must name the file.
fn error(name: &str, content: &[u8]) -> String {
    let error = rows(name, content).unwrap_err();
    assert!(error.contains(name), "{error}");
    error
}

#[test]
fn json_lines_with_and_without_their_oddities() {
    let plain = b"{\"a\": 1}\n{\"a\": \"x\"}\n";
    let odd = b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n   \n{\"a\": \"x\"}";
    assert_eq!(
        rows("a.jsonl", plain).unwrap(),
        [
            at("line 1", json!({"a": 1})),
            at("line 2", json!({"a": "x"}))
        ]
    );
    assert_eq!(
        rows("a.json", odd).unwrap(),
        [
            at("line 1", json!({"a": 1})),
            at("line 4", json!({"a": "x"}))
        ]
    );
    assert_eq!(rows("a.jsonl", b"").unwrap(), []);
}

#[test]
fn a_list_in_json_over_many_lines() {
    for start in ["", "\u{feff}", " \n"] {
        let text = format!("{start}[\n {{\"a\": [1,\n 2]}},\n{{\"b\": null}}\n]\n");
        assert_eq!(
            rows("a.json", text.as_bytes()).unwrap(),
            [
                at("item 1", json!({"a": [1, 2]})),
                at("item 2", json!({"b": null}))
            ]
        );
    }
    assert_eq!(rows("a.json", b"[]").unwrap(), []);
}

#[test]
fn broken_json_is_told_with_its_place() {
    for (content, words) in [
        (
            &b"{\"a\": 1}\n{\"a\": \"cut"[..],
            "line 2, column 10: it is not JSON (EOF while parsing a string)",
        ),
        (
            b"{\"a\": 1e999}",
            "line 1, column 11: it is not JSON (number out of range)",
        ),
        (b"{\"a\": 1} {\"b\": 2}\n", "line 1, column 10"),
        (b"5\n", "line 1: a number where an object should be"),
        (
            b"{\"a\": 1}\n{\"a\": \"\xff\"}\n",
            "line 2: it is not UTF-8 (at byte 8)",
        ),
        (
            b"[{\"a\": 1}, {\"a\": tru",
            "line 1, column 20: it is not JSON",
        ),
        (
            b"[{\"a\": 1},\n 7]",
            "item 2: a number where an object should be",
        ),
        (b"[{\"a\": 1}] x", "line 1, column 12"),
        (b"[{\"a\": 1}\n", "EOF"),
        (
            b"[{\"a\": \"\xff\"}]",
            "it is not JSON (invalid unicode code point)",
        ),
    ] {
        let error = error("a.json", content);
        assert!(error.contains(words), "{error}");
    }
    let deep = [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat();
    assert!(error("a.json", &deep).contains("recursion limit"));
    let deep = vec![b'['; 100_000];
    assert!(error("a.json", &deep).contains("recursion limit"));
}

#[test]
fn csv_with_quotes_that_hold_commas_and_lines() {
    for (start, end) in [("\u{feff}", "\n"), ("", "\r\n")] {
        let text =
            format!("{start}prompt, output_tokens{end}\"a, \"\"b\"\"{end}{end}c\",7{end}d,{end}");
        let quoted = format!("a, \"b\"{end}{end}c");
        assert_eq!(
            rows("a.csv", text.as_bytes()).unwrap(),
            [
                at("line 2", json!({"prompt": quoted, "output_tokens": "7"})),
                at("line 5", json!({"prompt": "d", "output_tokens": ""})),
            ]
        );
    }
    assert_eq!(
        rows("a.tsv", b"a\tb\n1,5\t2\n").unwrap(),
        [at("line 2", json!({"a": "1,5", "b": "2"}))]
    );
    for (content, words) in [
        (
            &b"a,b\n1,2\n3\n"[..],
            "line 3: 1 values where 2 columns have a name",
        ),
        (b"a,b\n\"1,2\n3,4\n", "line 2: 1 values where 2"),
        (b"a,b\n1,\xff\n", "line 2: value 2 is not UTF-8"),
        (b"\xff,b\n1,2\n", "line 1: value 1 is not UTF-8"),
    ] {
        let error = error("a.csv", content);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn lines_of_text() {
    assert_eq!(
        rows("a.txt", b"\xef\xbb\xbfone\r\n\n two \nthree").unwrap(),
        [
            at("line 1", json!({"text": "one"})),
            at("line 3", json!({"text": " two "})),
            at("line 4", json!({"text": "three"}))
        ]
    );
    assert!(error("a.txt", b"one\n\xc3").contains("line 2: it is not UTF-8 (at byte 1)"));
}

#[test]
fn parquet_that_another_program_has_written() {
    let path = |name: &str| Path::new("tests/fixtures/data").join(name);
    for name in ["snappy.parquet", "zstd.parquet"] {
        assert_eq!(
            rows_of(&path(name)).unwrap(),
            [
                at(
                    "row 1",
                    json!({"prompt": "first", "output_tokens_count": 7, "score": 0.5})
                ),
                at(
                    "row 2",
                    json!({"prompt": "zweite, „ü“", "output_tokens_count": null, "score": 1.5})
                ),
                at(
                    "row 3",
                    json!({"prompt": "third", "output_tokens_count": 9, "score": 2.5})
                ),
            ]
        );
    }
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    assert_eq!(
        rows_of(&path("sharegpt.parquet")).unwrap(),
        [
            at(
                "row 1",
                json!({"id": "x", "conversations": [said("human", "a"), said("gpt", "b"), said("human", "c")]})
            ),
            at(
                "row 2",
                json!({"id": "y", "conversations": [said("human", "d")]})
            ),
        ]
    );
    let gzip = rows_of(&path("gzip.parquet")).unwrap_err();
    assert!(
        gzip.contains("snappy, zstd and no compression are"),
        "{gzip}"
    );
}

#[test]
fn parquet_that_is_cut_off_or_none_at_all() {
    let whole = std::fs::read("tests/fixtures/data/zstd.parquet").unwrap();
    for content in [
        &b""[..],
        b"PAR1",
        b"not a Parquet file at all",
        &whole[..whole.len() / 2],
        &whole[10..],
    ] {
        assert!(
            error("a.parquet", content).contains("no Parquet file"),
            "{}",
            content.len()
        );
    }
}

#[test]
fn what_is_no_file_or_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("a.jsonl");
    assert!(rows_of(&missing).unwrap_err().contains("a.jsonl"));
    std::fs::create_dir(&missing).unwrap();
    assert!(rows_of(&missing).unwrap_err().contains("it is no file"));
    // It takes no room on the disk.
    let sparse = folder.path().join("b.jsonl");
    File::create(&sparse)
        .unwrap()
        .set_len(MOST_BYTES + 1)
        .unwrap();
    assert!(rows_of(&sparse).unwrap_err().contains("64 GiB, and more"));
    // A line of zeros without an end takes no more memory than a row may.
    File::create(&sparse)
        .unwrap()
        .set_len(MOST_ROW_BYTES * 4)
        .unwrap();
    assert!(
        rows_of(&sparse)
            .unwrap_err()
            .contains("line 1: a row of over 32 MiB")
    );
    let quoted = folder.path().join("c.csv");
    let mut content = b"a,b\n\"".to_vec();
    content.resize(MOST_ROW_BYTES as usize + 100_000, b'x');
    std::fs::write(&quoted, &content).unwrap();
    assert!(
        rows_of(&quoted)
            .unwrap_err()
            .contains("a row of over 32 MiB")
    );
    let list = folder.path().join("d.json");
    content.splice(0..5, b"[\"".iter().copied());
    std::fs::write(&list, &content).unwrap();
    assert!(rows_of(&list).unwrap_err().contains("a row of over 32 MiB"));
}

#[test]
fn what_takes_a_row_can_refuse_it() {
    for (name, content, place) in [
        ("a.jsonl", &b"{\"a\":1}\n{\"a\":2}\n"[..], "line 2"),
        ("a.json", b"[{\"a\":1},{\"a\":2}]", "item 2"),
        ("a.csv", b"a\n1\n2\n", "line 3"),
        ("a.txt", b"1\n2\n", "line 2"),
    ] {
        let (_folder, path) = file(name, content);
        let mut seen = 0;
        let mut take = |_: Row| {
            seen += 1;
            if seen == 2 {
                Err("no".to_owned())
            } else {
                Ok(())
            }
        };
        let error = read(&path, Format::of(&path).unwrap(), &mut take)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(&format!("{place}: no")), "{error}");
    }
}
