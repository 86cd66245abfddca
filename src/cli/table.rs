//! Tables: on a terminal one line to a row, fitted to its width; in a pipe plain columns with everything in them.

use comfy_table::{
    Cell, ColumnConstraint, ContentArrangement, LineStyle, Row, Table, TableStyle,
    presets::{self, UTF8_HORIZONTAL_ONLY},
};

use super::output::{Output, Tone};

/// A line between header and rows, none between rows: a screen should hold many.
const LOOK: TableStyle = UTF8_HORIZONTAL_ONLY
    .top_border(LineStyle::none())
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .row_separator(LineStyle::none())
    .bottom_border(LineStyle::none());
/// Between two columns.
const GAP: u32 = 3;
/// What a flexible column should have at least before others are left out.
const USEFUL: u16 = 16;

/// The columns of a table by their titles, and what a narrow terminal does to them.
#[derive(Debug, Default)]
pub struct Columns<'a> {
    pub titles: &'a [&'a str],
    /// These are cut off to what is left of the width.
    pub flexible: &'a [usize],
    /// These are left out, in this order, where that is not enough.
    pub optional: &'a [usize],
}

impl Output {
    pub fn table(&self, columns: &Columns<'_>, rows: Vec<Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.set_header(columns.titles.iter().map(|title| self.cell(Tone::Strong, title)));
        for cells in rows {
            let mut row = Row::from(cells);
            if self.terminal {
                row.max_height(1);
            }
            table.add_row(row);
        }
        if self.terminal {
            fit(&mut table, columns);
        } else {
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
            table.column_iter_mut().for_each(|column| {
                column.set_padding((0, 2));
            });
        }
        table.trim_fmt()
    }
}

fn fit(table: &mut Table, columns: &Columns<'_>) {
    table.load_style(LOOK).set_content_arrangement(ContentArrangement::Dynamic);
    let widths = table.column_max_content_widths();
    let hidden = hidden(columns, &widths, table.width());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if hidden.contains(&i) {
            column.set_constraint(ColumnConstraint::Hidden);
        } else if !columns.flexible.contains(&i) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        } else {
            // Cut off where the room ends, not after the last word that fits: no text has this one.
            column.set_delimiter('\0');
        }
    }
}

/// The columns for which there is no room.
fn hidden(columns: &Columns<'_>, widths: &[u16], terminal: Option<u16>) -> Vec<usize> {
    let Some(terminal) = terminal else { return Vec::new() };
    let least = |i: usize| {
        let width = widths.get(i).copied().unwrap_or_default();
        let width = if columns.flexible.contains(&i) { width.min(USEFUL) } else { width };
        u32::from(width) + GAP
    };
    let mut needed: u32 = (0..widths.len()).map(least).sum();
    let mut hidden = Vec::new();
    for i in columns.optional {
        if needed <= u32::from(terminal) {
            break;
        }
        needed -= least(*i);
        hidden.push(*i);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_plain_aligned_columns_with_everything() {
        let out = Output::piped();
        let row = |a: &str, b: &str| vec![out.cell(Tone::Bad, a), out.cell(Tone::Plain, b)];
        let columns = Columns { titles: &["TYPE", "NOTE"], flexible: &[1], optional: &[1] };
        let table = out.table(&columns, vec![row("send-email", "x"), row("a", &"long ".repeat(50))]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[..2], ["TYPE        NOTE", "send-email  x"]);
        assert_eq!(lines[2].len(), 12 + 249);
    }

    #[test]
    fn a_narrow_terminal_leaves_out_no_more_columns_than_it_must() {
        let columns = Columns { titles: &[], flexible: &[3], optional: &[1, 2] };
        let widths = [36, 10, 10, 200];
        let at = |terminal| hidden(&columns, &widths, terminal);
        assert_eq!((at(None), at(Some(84)), at(Some(83)), at(Some(60))), (vec![], vec![], vec![1], vec![1, 2]));
    }
}
