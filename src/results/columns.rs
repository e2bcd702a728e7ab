//! Tables of a terminal: columns that give way to a width.

use comfy_table::{
    Cell as TableCell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle,
};

use super::format::{self, NONE, or_none};

/// One rule under the head, nothing else: figures are read down their column.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The blanks before a cell: its own padding and the place of the line that [`STYLE`] does not draw.
const PADDING: usize = 2;

/// The shortest that a name is cut to.
const SHORTEST_NAME: usize = 8;

/// A column before it is laid out.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// What stands above it; a second line holds the unit.
    pub(super) head: String,
    /// One text per row.
    pub(super) cells: Vec<String>,
    /// Columns with a lower weight go first when the width does not suffice.
    weight: u8,
}

/// A column with a dash where there is no figure.
pub(super) fn column(
    head: &str,
    weight: u8,
    cells: impl Iterator<Item = Option<String>>,
) -> Column {
    Column {
        head: head.to_owned(),
        cells: cells.map(|cell| or_none(cell, |text| text)).collect(),
        weight,
    }
}

impl Column {
    /// Whether it names the rows: such a column begins at the left, and is cut before a figure is lost.
    pub(super) fn is_names(&self) -> bool {
        ["variant", "run", "task"].contains(&self.head.as_str())
    }

    /// Nothing instead of a dash.
    pub(super) fn blank(mut self) -> Self {
        for cell in &mut self.cells {
            if cell == NONE {
                cell.clear();
            }
        }
        self
    }

    fn width(&self) -> usize {
        let lines = self
            .head
            .lines()
            .chain(self.cells.iter().map(String::as_str));
        lines.map(|line| line.chars().count()).max().unwrap_or(0)
    }
}

/// Without the columns that say nothing.
pub(super) fn filled(mut columns: Vec<Column>) -> Vec<Column> {
    columns.retain(|column| {
        column
            .cells
            .iter()
            .any(|cell| cell != NONE && !cell.is_empty())
    });
    columns
}

/// The columns as text, the lightest dropped until the rest fits into `width`.
pub(super) fn laid_out(mut columns: Vec<Column>, width: usize) -> String {
    fit(&mut columns, width);
    let mut table = Table::new();
    table
        .load_style(STYLE)
        .set_content_arrangement(ContentArrangement::Disabled)
        .force_no_tty()
        .set_header(columns.iter().map(|column| column.head.clone()));
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        table.add_row(
            columns
                .iter()
                .map(|column| TableCell::new(&column.cells[row])),
        );
    }
    let names = columns.iter().position(Column::is_names);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((1, 0));
        if Some(place) != names {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Whether all columns have room, names cut as far as they are before a figure is lost.
pub(super) fn fits(columns: &[Column], width: usize) -> bool {
    let mut columns = columns.to_vec();
    shorten_names(&mut columns, width / 3);
    total(&columns) <= width
}

/// As many tables as it takes for no column to be dropped, each with the names of the rows.
pub(super) fn parts(columns: Vec<Column>, width: usize) -> Vec<Vec<Column>> {
    let (names, figures): (Vec<_>, Vec<_>) = columns.into_iter().partition(Column::is_names);
    let mut parts: Vec<Vec<Column>> = vec![names.clone()];
    for column in figures {
        let mut part = parts.pop().unwrap_or_else(|| names.clone());
        part.push(column);
        let is_too_wide = part.len() > names.len() + 1 && !fits(&part, width);
        let next = is_too_wide.then(|| part.pop()).flatten();
        parts.push(part);
        parts.extend(next.map(|column| [names.as_slice(), &[column]].concat()));
    }
    parts
}

fn total(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width() + PADDING).sum()
}

/// Drops the lightest columns until the rest fits, then cuts names.
fn fit(columns: &mut Vec<Column>, width: usize) {
    // A long name is cut before a figure is lost, but only as far as half of the width.
    shorten_names(columns, width / 3);
    while total(columns) > width && columns.len() > 2 {
        let lightest = (0..columns.len()).min_by_key(|&i| columns[i].weight);
        columns.remove(lightest.expect("there are columns"));
    }
    let excess = total(columns).saturating_sub(width);
    let name = columns.iter().find(|column| column.is_names());
    if let (Some(name), true) = (name, excess > 0) {
        let most = name.width().saturating_sub(excess).max(SHORTEST_NAME);
        shorten_names(columns, most);
    }
}

fn shorten_names(columns: &mut [Column], most: usize) {
    for column in columns.iter_mut().filter(|column| column.is_names()) {
        for cell in &mut column.cells {
            *cell = format::shortened(cell, most.max(SHORTEST_NAME));
        }
    }
}
