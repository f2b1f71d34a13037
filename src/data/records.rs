//! What one line means: a prompt with its completion, a conversation, or a document. The formats are
//! Bedrock's ("Prepare data for fine-tuning your models" in its user guide); whatever does not fit
//! is answered with the place, what was expected, and what to change.

use super::json::{self, Member, Node};
use super::jsonl::Fault;

/// What a job does with its data (`customizationType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Objective {
    /// Learn the completions, or the assistant's turns.
    FineTuning,
    /// Learn every token of plain documents.
    ContinuedPreTraining,
}

/// The record formats; a data set holds one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// `{"prompt": …, "completion": …}`
    Completion,
    /// `{"system": …, "messages": […]}`, with text blocks (bedrock-conversation-2024) or plain strings.
    Conversation,
    /// `{"input": …}`
    Text,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// One question, one answer.
    Completion {
        /// What the model is given.
        prompt: String,
        /// What it shall answer.
        completion: String,
    },
    /// Turns of a user and an assistant, beginning with the user, ending with the assistant.
    Conversation(Conversation),
    /// A document.
    Text(String),
}

/// A conversation as the chat template takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The system prompt.
    pub system: Option<String>,
    /// The turns.
    pub messages: Vec<Message>,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in templates and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Several text blocks of one turn as the text the template gets: training and serving join them alike.
pub fn join_blocks<S: AsRef<str>>(blocks: &[S]) -> String {
    blocks.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n")
}

impl Format {
    /// What a record of this format looks like.
    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::Completion => r#"{"prompt": "...", "completion": "..."}"#,
            Self::Conversation => {
                r#"{"schemaVersion": "bedrock-conversation-2024", "messages": [{"role": "user", "content": [{"text": "..."}]}, {"role": "assistant", "content": [{"text": "..."}]}]}"#
            }
            Self::Text => r#"{"input": "..."}"#,
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Completion => &["prompt", "completion"],
            Self::Conversation => &["schemaVersion", "system", "messages"],
            Self::Text => &["input"],
        }
    }
}

impl Record {
    /// Reads a line, for a job with `objective`.
    pub fn parse(line: &str, objective: Objective) -> Result<(Format, Self), Fault> {
        let root = json::parse(line)?;
        if root.kind() != "an object" {
            return Err(Fault::syntax(
                root.column(),
                format!("expected a JSON object on each line, found {}", root.kind()),
            ));
        }
        let members = root.members("")?;
        let format = format_of(&root, &members, objective)?;
        if let Some(stray) = members.iter().find(|member| !format.keys().contains(&member.name.as_str())) {
            return Err(Fault::format(
                stray.key.column(),
                format!(
                    "unknown key \"{}\"{}; a record here is {}",
                    stray.name,
                    did_you_mean(&stray.name, format.keys()),
                    format.example()
                ),
            ));
        }
        let need = |name: &str| {
            members.iter().find(|member| member.name == name).map(|member| member.value).ok_or_else(|| {
                Fault::format(
                    root.column(),
                    format!("the key \"{name}\" is missing; a record here is {}", format.example()),
                )
            })
        };
        let record = match format {
            Format::Completion => {
                let prompt = filled(need("prompt")?, "prompt", "there is nothing to answer")?;
                let completion = filled(need("completion")?, "completion", "there is nothing to learn")?;
                Self::Completion { prompt, completion }
            }
            Format::Text => Self::Text(filled(need("input")?, "input", "there is nothing to learn")?),
            Format::Conversation => {
                let messages = need("messages")?;
                if let Some(version) = members.iter().find(|member| member.name == "schemaVersion") {
                    version.value.string("schemaVersion")?;
                }
                let system = match members.iter().find(|member| member.name == "system") {
                    Some(member) => Some(text_of(member.value, "system")?).filter(|text| !text.trim().is_empty()),
                    None => None,
                };
                Self::Conversation(Conversation { system, messages: turns(messages)? })
            }
        };
        Ok((format, record))
    }
}

/// Which format the keys speak of, and whether the objective takes it.
fn format_of(root: &Node<'_>, members: &[Member<'_>], objective: Objective) -> Result<Format, Fault> {
    let has = |name: &str| members.iter().any(|member| member.name == name);
    let format = if has("messages") || has("schemaVersion") {
        Format::Conversation
    } else if has("prompt") || has("completion") {
        Format::Completion
    } else if has("input") {
        Format::Text
    } else {
        let expected = match objective {
            Objective::FineTuning => {
                format!("{} or {}", Format::Completion.example(), Format::Conversation.example())
            }
            Objective::ContinuedPreTraining => Format::Text.example().to_owned(),
        };
        let all = ["prompt", "completion", "messages", "schemaVersion", "input", "system"];
        return Err(match members.first() {
            Some(first) => Fault::format(
                first.key.column(),
                format!(
                    "unknown key \"{}\"{}; a record here is {expected}",
                    first.name,
                    did_you_mean(&first.name, &all)
                ),
            ),
            None => Fault::format(root.column(), format!("the record is empty; a record here is {expected}")),
        });
    };
    match (objective, format) {
        (Objective::FineTuning, Format::Text) => Err(Fault::format(
            root.column(),
            format!(
                "{{\"input\": ...}} is for continued pre-training: set customizationType to CONTINUED_PRE_TRAINING, or \
                 give {}",
                Format::Completion.example()
            ),
        )),
        (Objective::ContinuedPreTraining, Format::Completion | Format::Conversation) => Err(Fault::format(
            root.column(),
            format!(
                "prompts with answers are for fine-tuning: set customizationType to FINE_TUNING, or give {}",
                Format::Text.example()
            ),
        )),
        _ => Ok(format),
    }
}

fn turns(messages: Node<'_>) -> Result<Vec<Message>, Fault> {
    let items = messages.items("messages")?;
    let turns = items.iter().enumerate().map(|(i, item)| turn(*item, i)).collect::<Result<Vec<_>, _>>()?;
    match turns.last() {
        None => {
            Err(Fault::format(messages.column(), "messages: is empty; give at least a user's and an assistant's turn"))
        }
        Some(last) if last.role == Role::User => Err(Fault::format(
            items.last().map(Node::column),
            format!(
                "messages[{}]: the last message is the user's; a record ends with the assistant's answer",
                items.len() - 1
            ),
        )),
        Some(_) => Ok(turns),
    }
}

/// The turn number `i`, from 0: the user's, when `i` is even.
pub(super) fn turn(item: Node<'_>, i: usize) -> Result<Message, Fault> {
    let path = format!("messages[{i}]");
    let (mut role, mut content) = (None, None);
    for member in item.members(&path)? {
        match member.name.as_str() {
            "role" => role = Some(member.value),
            "content" => content = Some(member.value),
            other => {
                return Err(Fault::format(
                    member.key.column(),
                    format!("{path}: unknown key \"{other}\"; a message has \"role\" and \"content\""),
                ));
            }
        }
    }
    let missing = |name: &str| Fault::format(item.column(), format!("{path}: the key \"{name}\" is missing"));
    let role = role.ok_or_else(|| missing("role"))?;
    let content = content.ok_or_else(|| missing("content"))?;
    let expected = if i.is_multiple_of(2) { Role::User } else { Role::Assistant };
    let name = role.string(&format!("{path}.role"))?;
    if name != expected.name() {
        let hint = if name == "system" {
            " (a system prompt goes into the key \"system\" beside \"messages\")"
        } else {
            ""
        };
        return Err(Fault::format(
            role.column(),
            format!(
                "{path}.role: expected \"{}\", found \"{name}\"{hint}; messages start with the user and alternate",
                expected.name()
            ),
        ));
    }
    let place = format!("{path}.content");
    let text = text_of(content, &place)?;
    if text.trim().is_empty() {
        return Err(Fault::format(content.column(), format!("{place}: is empty")));
    }
    Ok(Message { role: expected, text })
}

/// A text given as a string, or as an array of text blocks.
pub(super) fn text_of(node: Node<'_>, path: &str) -> Result<String, Fault> {
    match node.kind() {
        "a string" => node.string(path),
        "an array" => {
            let mut blocks = Vec::new();
            for (i, item) in node.items(path)?.into_iter().enumerate() {
                let path = format!("{path}[{i}]");
                let members = item.members(&path)?;
                let Some(member) = members.first() else {
                    return Err(Fault::format(
                        item.column(),
                        format!("{path}: expected {{\"text\": \"...\"}}, found an empty object"),
                    ));
                };
                if let Some(stray) = members.iter().find(|member| member.name != "text") {
                    return Err(Fault::format(
                        stray.key.column(),
                        match stray.name.as_str() {
                            media @ ("image" | "video" | "document" | "audio") => {
                                format!("{path}.{media}: this model reads text only; remove the {media} or the record")
                            }
                            other => {
                                format!("{path}: unknown key \"{other}\"; a content block is {{\"text\": \"...\"}}")
                            }
                        },
                    ));
                }
                blocks.push(member.value.string(&format!("{path}.text"))?);
            }
            Ok(join_blocks(&blocks))
        }
        _ => Err(node.expected(path, "a string or an array of {\"text\": \"...\"} blocks")),
    }
}

fn filled(node: Node<'_>, path: &str, why: &str) -> Result<String, Fault> {
    let text = node.string(path)?;
    if text.trim().is_empty() {
        return Err(Fault::format(node.column(), format!("{path}: is empty; {why}")));
    }
    Ok(text)
}

/// ` (did you mean "…"?)` when one of `known` is near.
fn did_you_mean(name: &str, known: &[&str]) -> String {
    known
        .iter()
        .map(|known| (distance(&name.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance * 3 <= known.len())
        .min()
        .map_or_else(String::new, |(_, known)| format!(" (did you mean \"{known}\"?)"))
}

/// Levenshtein's edit distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // A key of a thousand characters is no misspelling.
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
