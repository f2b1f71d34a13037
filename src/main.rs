//! The `tunesmith` command; `tunesmith::cli` is the command line itself.

fn main() -> std::process::ExitCode {
    tunesmith::cli::main()
}
