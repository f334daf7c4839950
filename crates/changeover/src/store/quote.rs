//! Names and texts as they stand in DDL, which takes no parameters.

/// An identifier, whatever is in it.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A relation with its schema.
pub(crate) fn relation(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Identifiers, with commas between them.
pub(crate) fn idents<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(ident).collect::<Vec<_>>().join(", ")
}

/// A text, whatever is in it and however the session reads backslashes.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_quoted_stays_inside_its_quotes() {
        assert_eq!(relation("orders_v2", "a \"table\""), "\"orders_v2\".\"a \"\"table\"\"\"");
        assert_eq!(idents(["a", "B"]), "\"a\", \"B\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("\\'; DROP"), "E'\\\\''; DROP'");
    }
}
