//! Characters to tokens.

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Token {
    Name(String),
    Number(i32),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 28] = [
    "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "+", "-", "*", "/", "%", "&", "|", "^", "<",
    ">", "=", "(", ")", "{", "}", "[", "]", ";", ",", "!",
];

pub fn tokens(source: &str) -> Result<Vec<Token>, String> {
    let bytes = source.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let c = bytes[at];
        let while_it = |is: fn(&u8) -> bool| bytes[at..].iter().take_while(|b| is(b)).count();
        if c.is_ascii_whitespace() {
            at += 1;
        } else if source[at..].starts_with("/*") {
            let end = source[at..].find("*/").ok_or("a comment without end")?;
            at += end + 2;
        } else if c.is_ascii_alphabetic() || c == b'_' {
            let n = while_it(|b| b.is_ascii_alphanumeric() || *b == b'_');
            out.push(Token::Name(source[at..at + n].to_owned()));
            at += n;
        } else if c.is_ascii_digit() {
            let n = while_it(u8::is_ascii_digit);
            let number = source[at..at + n]
                .parse()
                .map_err(|e| format!("at {at}: {e}"))?;
            out.push(Token::Number(number));
            at += n;
        } else {
            let sign = SIGNS.iter().find(|s| source[at..].starts_with(**s));
            let sign = sign.ok_or_else(|| format!("at {at}: unknown character {:?}", c as char))?;
            out.push(Token::Sign(sign));
            at += sign.len();
        }
    }
    out.push(Token::End);
    Ok(out)
}
