//! Values that get a name in a template, made plain. Lists that are made as they are read (slices, `items`) hold each
//! other, and a loop could stack them until a stack ends; a namespace could hold itself, and would never be freed. So a
//! named value is a tree of lists, maps and texts, its depth is counted, and every node of it costs fuel.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Lists and maps within each other.
const MAX_DEPTH: usize = 64;

/// What else a walk over a value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// The value gets a name.
    Named,
    /// The value goes into a namespace, which holds no other and no loop.
    Shared,
    /// The value becomes text: its texts cost fuel, too.
    Written,
}

/// The same value, as a tree.
pub(super) fn plain(state: &State<'_, '_>, value: &Value, walk: Walk) -> Result<Value, Error> {
    Ok(rebuilt(state, value, walk, 0)?.unwrap_or_else(|| value.clone()))
}

/// The value as a tree; `None` when it is one.
fn rebuilt(state: &State<'_, '_>, value: &Value, walk: Walk, depth: usize) -> Result<Option<Value>, Error> {
    let Some(object) = value.as_object() else {
        if walk == Walk::Written {
            state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 4))?;
        }
        return Ok(None);
    };
    if depth > MAX_DEPTH {
        return Err(wrong(format!("lists and maps nest deeper than {MAX_DEPTH}")));
    }
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tree = value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some();
            if is_tree && !items_change(state, value, walk, depth)? {
                return Ok(None);
            }
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                let item = item?;
                items.push(rebuilt(state, &item, walk, depth + 1)?.unwrap_or(item));
            }
            Ok(Some(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }))
        }
        ValueKind::Map => {
            let name = object.type_name();
            let is_loop = name.contains("::loop_object::");
            let is_namespace = name.contains("::namespace_object::");
            if walk == Walk::Shared && (is_loop || is_namespace) {
                return Err(wrong("a namespace cannot hold a loop or a namespace"));
            }
            if is_loop {
                return Ok(None);
            }
            let is_tree = is_namespace || ["IndexMap<", "BTreeMap<", "HashMap<"].iter().any(|map| name.contains(map));
            let (mut pairs, mut changed) = (Vec::new(), !is_tree);
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                state.consume_fuel(1)?;
                rebuilt(state, &key, walk, depth + 1)?;
                let new = rebuilt(state, &item, walk, depth + 1)?;
                changed |= new.is_some() && !is_namespace;
                pairs.push((key, new.unwrap_or(item)));
            }
            Ok(changed.then(|| Value::from_pairs(pairs)))
        }
        _ => Ok(None),
    }
}

/// Whether an item of a list is no tree yet.
fn items_change(state: &State<'_, '_>, value: &Value, walk: Walk, depth: usize) -> Result<bool, Error> {
    for (place, item) in value.try_iter()?.checked().enumerate() {
        if place % 2 == 0 {
            state.consume_fuel(1)?;
        }
        if rebuilt(state, &item?, walk, depth + 1)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn wrong(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
