//! Lines of input: edited on a terminal, with those before at the arrow keys, and as they come from
//! a pipe.

use std::{
    io::{self, IsTerminal},
    thread,
};

use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::sync::mpsc;

/// What comes next.
#[derive(Debug)]
pub(super) enum Input {
    Line(String),
    /// Ctrl-C, while nothing runs that it could stop.
    Interrupted,
    End,
}

/// The lines of standard input. They are read on a thread of their own, one whenever it is asked for:
/// a terminal shows its prompt only then.
pub(super) struct Lines {
    wanted: mpsc::Sender<()>,
    read: mpsc::Receiver<Input>,
}

impl Lines {
    pub(super) fn start() -> io::Result<Self> {
        let (wanted, mut requests) = mpsc::channel::<()>(1);
        let (lines, read) = mpsc::channel(1);
        // Left behind at the end of the program, since a read cannot be cancelled.
        thread::Builder::new().name("input".into()).spawn(move || {
            let mut source = Source::new();
            while requests.blocking_recv().is_some() {
                if lines.blocking_send(source.next()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { wanted, read })
    }

    pub(super) async fn next(&mut self) -> Input {
        // The thread lives as long as both channels.
        let _ = self.wanted.send(()).await;
        self.read.recv().await.unwrap_or(Input::End)
    }
}

enum Source {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

impl Source {
    fn new() -> Self {
        match DefaultEditor::new() {
            Ok(editor) if io::stdin().is_terminal() => Self::Terminal(Box::new(editor)),
            _ => Self::Pipe,
        }
    }

    fn next(&mut self) -> Input {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // A line that cannot be remembered is still sent.
                    let _ = editor.add_history_entry(&line);
                    Input::Line(line)
                }
                Err(ReadlineError::Interrupted) => Input::Interrupted,
                Err(_) => Input::End,
            },
            Self::Pipe => {
                let mut line = String::new();
                match io::stdin().read_line(&mut line) {
                    Ok(1..) => Input::Line(line),
                    _ => Input::End,
                }
            }
        }
    }
}
