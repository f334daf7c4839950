//! What JSON text may hold so that PostgreSQL can hold it and readers can decode it.

/// As deep as serde_json decodes: arrays and objects in one another.
pub(super) const DEEPEST: usize = 127;

/// Whether JSON text escapes a U+0000: the escape's backslash must not itself be escaped.
pub(super) fn holds_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes_before = json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count();
        backslashes_before % 2 == 0
    })
}

/// Whether JSON text is nested too deep to be decoded. Parsing it as raw JSON does not tell: that needs no recursion.
pub(super) fn is_too_deep(json: &str) -> bool {
    let opens = |byte: &u8| matches!(byte, b'[' | b'{');
    // All but a few have not even that many brackets.
    if json.as_bytes().iter().filter(|byte| opens(byte)).count() <= DEEPEST {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json.as_bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth > DEEPEST {
            return true;
        }
    }
    false
}
