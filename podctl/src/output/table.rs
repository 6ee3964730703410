//! Aligned columns.

/// Headers and rows in columns two spaces apart, without spaces at line ends. An empty cell becomes `-`.
pub fn table<const N: usize>(headers: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let head = headers.map(str::to_owned);
    let rows =
        rows.into_iter().map(|row| row.map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(&cell) }));
    let lines: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let start = text.len();
        for (width, cell) in widths.iter().zip(line) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    }
    text
}

/// Without control characters: a pod's command line must not command the reader's terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["web", "running", ""], ["database-1", "exited", "x\ny"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            table(["NAME", "STATE", "COMMAND"], rows),
            "NAME        STATE    COMMAND\n\
             web         running  -\n\
             database-1  exited   x\u{fffd}y\n"
        );
        assert_eq!(table(["NAME", "STATE"], []), "NAME  STATE\n");
    }
}
