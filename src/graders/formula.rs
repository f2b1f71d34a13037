//! The formula of a `multi` grader: numbers, the names of its graders, `+ - * / ^`, brackets, and the functions
//! min, max, abs, floor, ceil, exp, sqrt and log. Source: OpenAI's guide to graders, "Multigraders".

use crate::error::{Error, Result};

/// Formulas nest at most so deep: a stack is finite.
const DEEPEST: usize = 64;

/// A formula over named values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Formula {
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    /// By its place among the names.
    Name(usize),
    Negative(Box<Node>),
    Two(Operator, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    Log,
}

impl Function {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "min" => Self::Min,
            "max" => Self::Max,
            "abs" => Self::Abs,
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            "exp" => Self::Exp,
            "sqrt" => Self::Sqrt,
            "log" => Self::Log,
            _ => return None,
        })
    }
}

impl Formula {
    /// Reads `text`, in which `names` may stand.
    ///
    /// # Errors
    /// `Validation` that says where it cannot be read.
    pub(super) fn parse(text: &str, names: &[String]) -> Result<Self> {
        let mut reader = Reader { text, at: 0, names, depth: 0 };
        let root = reader.sum()?;
        reader.space();
        if reader.at < text.len() {
            return Err(reader.wrong("nothing more is expected"));
        }
        Ok(Self { root })
    }

    /// Its value, with the values of the names in their order.
    pub(super) fn value(&self, values: &[f64]) -> f64 {
        self.root.value(values)
    }
}

impl Node {
    fn value(&self, values: &[f64]) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Name(place) => values.get(*place).copied().unwrap_or(f64::NAN),
            Self::Negative(node) => -node.value(values),
            Self::Two(operator, left, right) => {
                let (left, right) = (left.value(values), right.value(values));
                match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                    Operator::Power => left.powf(right),
                }
            }
            Self::Call(function, arguments) => {
                let mut given = arguments.iter().map(|argument| argument.value(values));
                let first = given.next().unwrap_or(f64::NAN);
                match function {
                    // A value that is no number must not vanish in a minimum.
                    Function::Min => {
                        given.fold(first, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) })
                    }
                    Function::Max => {
                        given.fold(first, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
                    }
                    Function::Abs => first.abs(),
                    Function::Floor => first.floor(),
                    Function::Ceil => first.ceil(),
                    Function::Exp => first.exp(),
                    Function::Sqrt => first.sqrt(),
                    Function::Log => first.ln(),
                }
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    names: &'a [String],
    depth: usize,
}

impl Reader<'_> {
    fn sum(&mut self) -> Result<Node> {
        let mut left = self.product()?;
        while let Some(sign) = self.one_of(&['+', '-']) {
            let operator = if sign == '+' { Operator::Add } else { Operator::Subtract };
            left = Node::Two(operator, Box::new(left), Box::new(self.product()?));
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Node> {
        let mut left = self.signed()?;
        while let Some(sign) = self.one_of(&['*', '/']) {
            let operator = if sign == '*' { Operator::Multiply } else { Operator::Divide };
            left = Node::Two(operator, Box::new(left), Box::new(self.signed()?));
        }
        Ok(left)
    }

    /// A sign binds less than a power: -2^2 is -4.
    fn signed(&mut self) -> Result<Node> {
        self.deeper()?;
        let node = match self.one_of(&['+', '-']) {
            Some('-') => Node::Negative(Box::new(self.signed()?)),
            Some(_) => self.signed()?,
            None => self.power()?,
        };
        self.depth -= 1;
        Ok(node)
    }

    fn power(&mut self) -> Result<Node> {
        let base = self.value()?;
        match self.one_of(&['^']) {
            Some(_) => Ok(Node::Two(Operator::Power, Box::new(base), Box::new(self.signed()?))),
            None => Ok(base),
        }
    }

    fn value(&mut self) -> Result<Node> {
        if self.one_of(&['(']).is_some() {
            let inner = self.sum()?;
            return self.close().map(|()| inner);
        }
        self.space();
        let rest = &self.text[self.at..];
        let first = rest.chars().next();
        if first.is_some_and(|c| c.is_ascii_digit() || c == '.') {
            return self.number(rest);
        }
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let name = &rest[..length];
        if name.is_empty() {
            return Err(self.wrong("a number, a grader's name or a function is expected"));
        }
        self.at += length;
        // A grader of a function's name is that grader, unless it is called.
        if self.one_of(&['(']).is_some() {
            let function = Function::named(name).ok_or_else(|| {
                self.wrong(&format!(
                    "there is no function {name}; there are min, max, abs, floor, ceil, exp, sqrt and log"
                ))
            })?;
            return self.call(function, name);
        }
        match self.names.iter().position(|known| known == name) {
            Some(place) => Ok(Node::Name(place)),
            None => Err(self.wrong(&format!("there is no grader {name}; there are {}", self.names.join(", ")))),
        }
    }

    fn number(&mut self, rest: &str) -> Result<Node> {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let mut length = digits(rest);
        if rest[length..].starts_with('.') {
            length += 1 + digits(&rest[length + 1..]);
        }
        let exponent = rest[length..].strip_prefix(['e', 'E']).map(|tail| {
            let sign = usize::from(tail.starts_with(['+', '-']));
            (1 + sign, digits(&tail[sign..]))
        });
        if let Some((before, digits)) = exponent.filter(|(_, digits)| *digits > 0) {
            length += before + digits;
        }
        let number = rest[..length].parse().map_err(|_| self.wrong("this is no number"))?;
        self.at += length;
        Ok(Node::Number(number))
    }

    fn call(&mut self, function: Function, name: &str) -> Result<Node> {
        let mut arguments = vec![self.sum()?];
        while self.one_of(&[',']).is_some() {
            arguments.push(self.sum()?);
        }
        self.close()?;
        let takes_many = matches!(function, Function::Min | Function::Max);
        if takes_many == (arguments.len() == 1) {
            let takes = if takes_many { "two values or more" } else { "one value" };
            return Err(self.wrong(&format!("{name} takes {takes}")));
        }
        Ok(Node::Call(function, arguments))
    }

    fn close(&mut self) -> Result<()> {
        match self.one_of(&[')']) {
            Some(_) => Ok(()),
            None => Err(self.wrong("a closing bracket is expected")),
        }
    }

    fn one_of(&mut self, wanted: &[char]) -> Option<char> {
        self.space();
        let next = self.text[self.at..].chars().next().filter(|c| wanted.contains(c))?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(self.wrong("it nests too deep")) } else { Ok(()) }
    }

    fn wrong(&self, what: &str) -> Error {
        let place = self.text[..self.at].chars().count() + 1;
        Error::validation(format!("calculate_output {:?}, at character {place}: {what}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> f64 {
        let names = ["a".to_string(), "b_2".to_string(), "max".to_string()];
        Formula::parse(text, &names).unwrap().value(&[0.5, 3.0, 7.0])
    }

    #[test]
    fn operators_bind_as_in_arithmetic() {
        for (text, expected) in [
            ("1 + 2 * 3", 7.0),
            ("(1+2)*3", 9.0),
            ("8 / 4 / 2", 1.0),
            ("7 - 2 - 1", 4.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("2 ^ -1", 0.5),
            ("1.5e1 + .5", 15.5),
            ("0.25 * a + 0.5 * b_2", 1.625),
            ("max", 7.0),
            ("max(a, b_2, 1) + min(a, b_2)", 3.5),
            ("abs(-3) + floor(1.9) + ceil(1.1)", 6.0),
            ("exp(0) + sqrt(9) + log(1)", 4.0),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert!(value("1 / (a - a)").is_infinite() && value("min(1, log(-1))").is_nan());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for (text, part) in [
            ("1 +", "character 4"),
            ("a b", "character 3: nothing more"),
            ("c + 1", "there is no grader c; there are a"),
            ("sin(a)", "there is no function sin"),
            ("min(a)", "min takes two values or more"),
            ("abs(a, 1)", "abs takes one value"),
            ("(a", "a closing bracket"),
            ("", "character 1"),
        ] {
            let names = ["a".to_string()];
            let error = Formula::parse(text, &names).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
        let deep = format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(Formula::parse(&deep, &[]).unwrap_err().message().contains("too deep"));
    }
}
