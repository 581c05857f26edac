use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(i64),
    Operator(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        out.push(match word.parse() {
            Ok(n) => Token::Number(n),
            Err(_) if word.len() == 1 => Token::Operator(word.chars().next().unwrap()),
            Err(e) => return Err(format!("{word}: {e}")),
        });
    }
    Ok(out)
}

fn value(text: &str) -> Result<i64, String> {
    let mut stack: Vec<i64> = Vec::new();
    for t in tokens(text)? {
        match t {
            Token::Number(n) => stack.push(n),
            Token::Operator(c) => {
                let (b, a) = (stack.pop().ok_or("empty")?, stack.pop().ok_or("empty")?);
                stack.push(match c {
                    '+' => a + b,
                    '*' => a * b,
                    '-' => a - b,
                    _ => return Err(format!("operator {c}")),
                });
            }
        }
    }
    stack.pop().ok_or_else(|| "nothing".into())
}

fn main() {
    let (sender, receiver) = mpsc::channel();
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let (sender, seen) = (sender.clone(), Arc::clone(&seen));
            thread::spawn(move || {
                for k in 0..50 {
                    let v = value(&format!("{i} {k} * {k} + 2 -")).unwrap();
                    *seen.lock().unwrap().entry(v).or_insert(0) += 1;
                    sender.send(v).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    for t in threads {
        t.join().unwrap();
    }
    let mut all: Vec<i64> = receiver.iter().collect();
    all.sort();
    let most = seen.lock().unwrap().values().copied().max();
    println!("{} {:?} {:?} {:?}", all.len(), &all[..5], all.last(), most);
    println!("{:?} {:?}", value("1 +"), value("1 2 ?"));
}
