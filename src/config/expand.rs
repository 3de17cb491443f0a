//! `${NAME}` within strings.

use super::Environment;

/// Replaces each `${NAME}` by the variable; `$${` stands for a literal `${`, and any other `$` for itself, so
/// that a password with dollar signs needs no care.
///
/// # Errors
/// What is wrong, naming the variable.
pub(super) fn expand(text: &str, env: Environment<'_>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        rest = &rest[at + 2..];
        if let Some(before) = before.strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            continue;
        }
        result.push_str(before);
        let Some((name, after)) = rest.split_once('}') else {
            return Err("a \"${\" without its \"}\"; write \"$${\" for a literal one".to_owned());
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err("a \"${…}\" that names no environment variable; expected ${NAME}, or \"$${\" for a literal \"${\"".to_owned());
        }
        let value = env(name).ok_or_else(|| {
            format!("the environment variable {name} is not set; set it, or write the value")
        })?;
        result.push_str(&value);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::expand;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &|name| (name == "A").then(|| "${A}x".to_owned()))
    }

    #[test]
    fn variables_are_replaced_once_and_dollars_stay() {
        assert_eq!(expanded("1${A}2${A}").unwrap(), "1${A}x2${A}x");
        assert_eq!(expanded("pa$$word$").unwrap(), "pa$$word$");
        assert_eq!(expanded("$${A}").unwrap(), "${A}");
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        assert!(expanded("${B}").unwrap_err().contains("B is not set"));
        assert!(expanded("${A").unwrap_err().contains("without its"));
        assert!(expanded("${A B}").unwrap_err().contains("names no environment variable"));
    }
}
