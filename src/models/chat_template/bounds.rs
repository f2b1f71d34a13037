//! The counted look at a template before it is compiled. The parser and the compiler of the template engine recurse
//! over chains and nested tags, so both are counted here, with the engine's own tokens. The same pass adds what makes
//! rendering bounded: a look at the clock where a loop or a macro begins, and [`super::plain`] around every value that
//! gets a name.

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::hooks;
use super::refused;
use crate::error::{Error, Result};

/// The largest template that is read. The largest of a public model takes 20 KB.
pub(super) const MAX_BYTES: usize = 128 << 10;
/// Tokens of one tag: a chain of operators is as deep as it is long.
const MAX_TAG_TOKENS: usize = 1000;
/// Brackets within brackets.
const MAX_BRACKETS: usize = 32;
/// Filters of one tag.
const MAX_PIPES: usize = 64;
/// Tags within tags.
const MAX_BLOCKS: usize = 32;
/// Branches of all tags that are open.
const MAX_BRANCHES: usize = 200;

/// Other templates, which there are none of, and loops that call themselves.
const UNSUPPORTED: [&str; 4] = ["include", "import", "from", "extends"];
/// Methods of a loop that keep values, so that a loop could hold itself.
const LOOP_STATE: [&str; 2] = ["changed", "cycle"];

/// Checks `source` and returns it with its hooks.
///
/// # Errors
/// `Validation` that names what is too large, and the line.
pub(super) fn instrument(source: &str, syntax: &SyntaxConfig) -> Result<String> {
    let mut written = Written { source, text: String::with_capacity(source.len() * 2), copied: 0 };
    let mut open = Vec::new();
    let mut tag: Vec<(Token<'_>, Span)> = Vec::new();
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token.map_err(|cause| refused(format!("{cause:#}")))?;
        match token {
            Token::TemplateData(_) => {}
            Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::VariableEnd => check_tag(&tag)?,
            Token::BlockEnd => {
                check_tag(&tag)?;
                check_block(&tag, &mut open)?;
                written.hook(&tag, span);
            }
            token => {
                tag.push((token, span));
                if tag.len() > MAX_TAG_TOKENS {
                    return Err(at(span, format!("a tag has more than {MAX_TAG_TOKENS} words and signs")));
                }
            }
        }
    }
    written.text.push_str(&source[written.copied..]);
    Ok(written.text)
}

fn at(span: Span, why: impl std::fmt::Display) -> Error {
    refused(format!("line {}: {why}", span.start_line))
}

fn check_tag(tag: &[(Token<'_>, Span)]) -> Result<()> {
    let (mut brackets, mut pipes) = (0_usize, 0_usize);
    for (token, span) in tag {
        match token {
            Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => brackets += 1,
            Token::BracketClose | Token::BraceClose | Token::ParenClose => brackets = brackets.saturating_sub(1),
            Token::Pipe => pipes += 1,
            Token::Ident(name) if hooks::NAMES.contains(name) => {
                return Err(at(*span, format!("the name {name} is reserved")));
            }
            _ => {}
        }
        if brackets > MAX_BRACKETS {
            return Err(at(*span, format!("brackets nest deeper than {MAX_BRACKETS}")));
        }
        if pipes > MAX_PIPES {
            return Err(at(*span, format!("a tag has more than {MAX_PIPES} filters")));
        }
    }
    // Whatever they stand behind: a loop may have other names.
    let keeps = |window: &&[(Token<'_>, Span)]| matches!(window, [(Token::Dot, _), (Token::Ident(name), _), (Token::ParenOpen, _)] if LOOP_STATE.contains(name));
    match tag.windows(3).find(keeps) {
        Some(window) => Err(at(window[1].1, format!("{} of a loop are not supported", LOOP_STATE.join(" and ")))),
        None => Ok(()),
    }
}

/// A tag that is open, with its branches.
type Open = usize;

fn check_block(tag: &[(Token<'_>, Span)], open: &mut Vec<Open>) -> Result<()> {
    let Some((Token::Ident(keyword), span)) = tag.first() else { return Ok(()) };
    let recursive = |(token, _): &(Token<'_>, Span)| matches!(token, Token::Ident("recursive"));
    let opens = match *keyword {
        keyword if UNSUPPORTED.contains(&keyword) => {
            return Err(at(*span, format!("{keyword} is not supported: a chat template stands alone")));
        }
        "for" if tag.iter().any(recursive) => return Err(at(*span, "recursive loops are not supported")),
        "set" => {
            let block = assignment(tag).is_none();
            if block && tag.iter().any(|(token, _)| matches!(token, Token::Pipe)) {
                return Err(at(*span, "a set block with a filter is not supported: filter the value later"));
            }
            block
        }
        "for" | "if" | "with" | "macro" | "call" | "filter" | "autoescape" | "block" => true,
        "elif" => {
            if let Some(branches) = open.last_mut() {
                *branches += 1;
            }
            false
        }
        keyword => {
            if keyword.starts_with("end") {
                open.pop();
            }
            false
        }
    };
    if opens {
        open.push(1);
    }
    if open.len() > MAX_BLOCKS {
        return Err(at(*span, format!("tags nest deeper than {MAX_BLOCKS}")));
    }
    if open.iter().sum::<usize>() > MAX_BRANCHES {
        return Err(at(*span, format!("tags have more than {MAX_BRANCHES} branches")));
    }
    Ok(())
}

/// Where the `=` of a `set` stands that gives a value, outside of brackets.
fn assignment(tag: &[(Token<'_>, Span)]) -> Option<usize> {
    let mut brackets = 0_usize;
    tag.iter().position(|(token, _)| {
        match token {
            Token::ParenOpen => brackets += 1,
            Token::ParenClose => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        brackets == 0 && matches!(token, Token::Assign)
    })
}

/// The names that a macro's, a call's or a `with`'s head binds: what stands before a comma, a `=` or the end.
fn bound<'a>(tag: &[(Token<'a>, Span)]) -> Vec<&'a str> {
    let is_call = matches!(tag, [(Token::Ident("call"), _), ..]);
    // A call that takes no parameters goes on with what is called.
    if is_call && !matches!(tag, [_, (Token::ParenOpen, _), ..]) {
        return Vec::new();
    }
    let inner = usize::from(!matches!(tag, [(Token::Ident("with"), _), ..]));
    let mut names = Vec::new();
    let (mut brackets, mut is_value) = (0_usize, false);
    for (token, _) in &tag[1..] {
        match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => brackets += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                brackets = brackets.saturating_sub(1);
                // Behind the parameters of a call stands what is called.
                if inner == 1 && brackets == 0 {
                    break;
                }
            }
            Token::Comma if brackets <= inner => is_value = false,
            Token::Assign if brackets <= inner => is_value = true,
            Token::Ident(name) if !is_value && (brackets > 0 || inner == 0) => names.push(*name),
            _ => {}
        }
    }
    names
}

/// The template as it grows, with what was copied of the source.
struct Written<'a> {
    source: &'a str,
    text: String,
    copied: usize,
}

impl Written<'_> {
    fn copy_to(&mut self, end: u32) {
        let end = end as usize;
        self.text.push_str(&self.source[self.copied..end]);
        self.copied = end;
    }

    /// Adds the hooks of one block tag that `end` closes.
    fn hook(&mut self, tag: &[(Token<'_>, Span)], end: Span) {
        let (Some((Token::Ident(keyword), _)), Some((_, last))) = (tag.first(), tag.last()) else { return };
        match *keyword {
            "set" => {
                let Some(equals) = assignment(tag) else { return };
                let shared = tag[..equals].iter().any(|(token, _)| matches!(token, Token::Dot));
                self.copy_to(tag[equals].1.end_offset);
                self.text.push('(');
                self.copy_to(last.end_offset);
                self.text += &format!(")|{}({shared})", hooks::PLAIN);
            }
            "for" | "macro" | "call" | "with" => {
                self.copy_to(end.end_offset);
                // The white space behind the tag is treated as before: the last added tag ends as it did.
                let sign = self.source[end.start_offset as usize..].chars().next().filter(|sign| "-+".contains(*sign));
                let ending = sign.map_or(String::new(), String::from);
                if *keyword != "for" {
                    for name in bound(tag) {
                        self.text += &format!("{{% set {name} = ({name})|{}(false) %}}", hooks::PLAIN);
                    }
                }
                self.text += &format!("{{% if 0|{} %}}{{% endif {ending}%}}", hooks::TICK);
            }
            _ => {}
        }
    }
}
