//! Columns of tables whose lines are of one type, for the terminal and the page.

use super::plot::escape;

/// A column: its head, what it means, and its cell.
pub struct Column<T> {
    /// Its head.
    pub head: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Its cell in a line.
    pub cell: fn(&T) -> String,
}

impl<T> Column<T> {
    /// The cells of a line.
    pub fn cells(columns: &[Self], line: &T) -> Vec<String> {
        columns.iter().map(|column| (column.cell)(line)).collect()
    }

    /// The heads.
    pub fn heads(columns: &[Self]) -> impl Iterator<Item = &'static str> {
        columns.iter().map(|column| column.head)
    }

    /// What the columns mean, for a page.
    pub fn explained(columns: &[Self]) -> String {
        let line =
            |column: &Self| format!("<tr><td>{}</td><td>{}</td></tr>", escape(column.head), escape(column.meaning));
        format!("<table class=\"wide\">{}</table>", columns.iter().map(line).collect::<String>())
    }
}
