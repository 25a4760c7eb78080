use super::*;
use proptest::prelude::*;

fn content(json: &str) -> Content {
    parse(json.as_bytes()).unwrap().content
}

#[test]
fn completions_and_chat() {
    assert_eq!(
        content(r#"{"id":"c","choices":[{"index":0,"text":" hi","finish_reason":null}]}"#),
        Content::Text
    );
    assert_eq!(
        content(r#"{"choices":[{"text":"","finish_reason":null}],"usage":null}"#),
        Content::Blank
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#),
        Content::None
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#),
        Content::Text
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"content":"\ud83d\ude42"}}]}"#),
        Content::Text
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"content":""}}]}"#),
        Content::Blank
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#),
        Content::Reasoning
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#),
        Content::Reasoning
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#),
        Content::Text
    );
    assert_eq!(
        content(r#"{"choices":[{"delta":{"tool_calls":[]}}]}"#),
        Content::None
    );
    assert_eq!(
        content(r#"{"choices":[{"message":{"role":"assistant","content":"whole"}}]}"#),
        Content::Text
    );
    assert_eq!(content(r#"{"choices":[]}"#), Content::None);
}

#[test]
fn both_names_of_reasoning_in_one_chunk() {
    for (json, expected) in [
        (
            r#"{"reasoning":"hm","reasoning_content":"hm"}"#,
            Content::Reasoning,
        ),
        (
            r#"{"reasoning":"hm","reasoning_content":null}"#,
            Content::Reasoning,
        ),
        (
            r#"{"reasoning":null,"reasoning_content":"","content":"a"}"#,
            Content::Text,
        ),
    ] {
        let chunk = format!(r#"{{"choices":[{{"delta":{json}}}]}}"#);
        assert_eq!(content(&chunk), expected, "{json}");
    }
}

// Events as in OpenAI's reference of the Responses API.
#[test]
fn events_of_responses() {
    for (json, expected) in [
        (
            r#"{"type":"response.created","response":{"id":"r","status":"in_progress","error":null,"output":[],"usage":null}}"#,
            Content::None,
        ),
        (
            r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"message","role":"assistant","content":[]}}"#,
            Content::None,
        ),
        (
            r#"{"type":"response.content_part.added","item_id":"m","part":{"type":"output_text","text":""}}"#,
            Content::None,
        ),
        (
            r#"{"type":"response.output_text.delta","item_id":"m","delta":"In","sequence_number":1}"#,
            Content::Text,
        ),
        (
            r#"{"type":"response.output_text.delta","delta":""}"#,
            Content::Blank,
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","delta":"{ \"a"}"#,
            Content::Text,
        ),
        (
            r#"{"type":"response.reasoning_text.delta","delta":"hm"}"#,
            Content::Reasoning,
        ),
        (
            r#"{"type":"response.reasoning_summary_text.delta","delta":"hm"}"#,
            Content::Reasoning,
        ),
        (
            r#"{"type":"response.output_text.done","text":"In all"}"#,
            Content::None,
        ),
    ] {
        let info = parse(json.as_bytes()).unwrap();
        let quiet = ChunkInfo {
            content: expected,
            ..ChunkInfo::default()
        };
        assert_eq!(info, quiet, "{json}");
    }
    let end = |kind: &str, more: &str| {
        let json = format!(
            r#"{{"type":"response.{kind}","response":{{"output":[],{more}"usage":{{"input_tokens":37,"input_tokens_details":{{"cached_tokens":5}},"output_tokens":11,"output_tokens_details":{{"reasoning_tokens":3}},"total_tokens":48}}}}}}"#
        );
        parse(json.as_bytes()).unwrap()
    };
    let usage = Usage {
        prompt_tokens: Some(37),
        completion_tokens: Some(11),
        cached_tokens: Some(5),
        reasoning_tokens: Some(3),
    };
    for (kind, more) in [
        ("completed", ""),
        (
            "incomplete",
            r#""incomplete_details":{"reason":"max_output_tokens"},"#,
        ),
    ] {
        let last = end(kind, more);
        assert!(last.finished && last.error.is_none(), "{kind}");
        assert_eq!(last.usage, Some(usage));
    }
    let failed = end(
        "failed",
        r#""error":{"code":"server_error","message":"no luck"},"#,
    );
    assert_eq!(failed.error.as_deref(), Some("no luck"));
    assert_eq!(
        end("failed", "").error.as_deref(),
        Some("response.failed without a reason")
    );
    let error = br#"{"type":"error","code":"ERR","message":"went wrong","param":null}"#;
    assert_eq!(parse(error).unwrap().error.as_deref(), Some("went wrong"));
}

#[test]
fn whole_answers_of_responses_and_embeddings() {
    let whole = parse(br#"{"object":"response","status":"completed","error":null,"output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}],"usage":{"input_tokens":1,"output_tokens":2}}"#).unwrap();
    assert!(whole.finished && whole.content == Content::Text);
    assert_eq!(whole.usage.unwrap().completion_tokens, Some(2));
    let vector = parse(br#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-2e-3]}],"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}"#).unwrap();
    assert!(vector.finished && vector.content == Content::None);
    assert_eq!(vector.usage.unwrap().prompt_tokens, Some(8));
    assert!(!parse(br#"{"object":"list","data":[]}"#).unwrap().finished);
}

#[test]
fn the_end_and_usage() {
    let last = parse(br#"{"choices":[{"text":"x","finish_reason":"length"}],"usage":{"prompt_tokens":128,"completion_tokens":64,"total_tokens":192,"prompt_tokens_details":{"cached_tokens":16}}}"#).unwrap();
    assert!(last.finished);
    let usage = last.usage.unwrap();
    assert_eq!(
        (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens
        ),
        (Some(128), Some(64), Some(16))
    );
    assert_eq!(
        parse(br#"{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":null}}"#)
            .unwrap()
            .usage
            .unwrap()
            .cached_tokens,
        None
    );
}

#[test]
fn errors_in_the_stream() {
    let error = |json: &str| parse(json.as_bytes()).unwrap().error;
    assert_eq!(
        error(r#"{"error":{"message":"out of memory","code":500}}"#).as_deref(),
        Some("out of memory")
    );
    assert_eq!(error(r#"{"error":"plain"}"#).as_deref(), Some("plain"));
    assert_eq!(
        error(r#"{"object":"error","message":"old"}"#).as_deref(),
        Some("old")
    );
    assert_eq!(error(r#"{"choices":[],"error":null}"#), None);
    for bad in [
        "{",
        "nonsense",
        r#"{"choices":5}"#,
        r#"{"usage":{"prompt_tokens":-1}}"#,
    ] {
        assert!(
            parse(bad.as_bytes())
                .unwrap_err()
                .starts_with("invalid JSON"),
            "{bad}"
        );
    }
}

#[test]
fn half_a_character_is_still_a_token() {
    assert_eq!(
        parse(b"{\"choices\":[{\"text\":\"\xe4\xb8\"}]}")
            .unwrap()
            .content,
        Content::Text
    );
    assert!(parse(b"\xff\xfe").is_err());
}

#[test]
fn a_count_that_no_request_can_have_is_an_error() {
    let usage = |n: u64| format!("{{\"usage\":{{\"completion_tokens\":{n}}}}}");
    assert!(parse(usage(1 << 32).as_bytes()).is_ok());
    let error = parse(usage(u64::MAX).as_bytes()).unwrap_err();
    assert!(error.contains("18446744073709551615 tokens"), "{error}");
}

#[test]
fn text_for_a_tokenizer() {
    let (mut text, mut said) = (String::new(), String::new());
    let mut read = |data: &[u8]| {
        take_text(data, |part, reasoning| {
            text.push_str(part);
            if !reasoning {
                said.push_str(part);
            }
        });
    };
    read(br#"{"choices":[{"text":"a\n"}]}"#);
    read(br#"{"choices":[{"delta":{"reasoning_content":"b","content":"c"}}]}"#);
    read(br#"{"type":"response.output_text.delta","delta":"d"}"#);
    read(br#"{"type":"response.reasoning_text.delta","delta":"e"}"#);
    read(br#"{"type":"response.output_text.done","text":"d"}"#);
    read(
        br#"{"object":"response","output":[{"type":"reasoning","content":[{"text":"f"}]},{"content":[{"text":"g"}]}]}"#,
    );
    read(b"nonsense");
    assert_eq!((text.as_str(), said.as_str()), ("a\nbcdefg", "a\ncdg"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_chunk_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_text_counts_as_content(text in "\\PC{1,20}") {
        let json = serde_json::json!({"choices": [{"index": 0, "text": text, "logprobs": null}]}).to_string();
        prop_assert_eq!(parse(json.as_bytes()).unwrap().content, Content::Text);
    }
}
