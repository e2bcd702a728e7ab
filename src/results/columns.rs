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
    drawn(&columns)
}

/// The columns as they are.
fn drawn(columns: &[Column]) -> String {
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

/// Rows under their heads in as many tables as it takes for every column to have room in `width`. The column that names the
/// rows, `task`, `variant` or `run`, is in each.
pub fn tabulated(heads: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let cell = |place: usize| move |row: &Vec<String>| row.get(place).cloned();
    let columns = heads.iter().enumerate();
    let columns = columns.map(|(place, head)| column(head, 255, rows.iter().map(cell(place))));
    let columns: Vec<Column> = columns.collect();
    if total(&columns) <= width {
        return drawn(&columns) + "\n";
    }
    let tables = parts(columns, width).into_iter();
    let tables: Vec<String> = tables.map(|part| laid_out(part, width) + "\n").collect();
    tables.join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_where_there_is_room_and_in_parts_where_not() {
        let row = ["a_task_with_a_name", "0.5000", "0.2500"].map(str::to_owned);
        let shown = |width| tabulated(&["task", "value", "± se"], &[row.to_vec()], width);
        let whole = shown(40);
        assert_eq!(whole.lines().count(), 3, "{whole}");
        assert!(
            whole.contains(&row[0]) && whole.contains(&row[2]),
            "{whole}"
        );
        let parts = shown(20);
        assert_eq!(parts.matches("task").count(), 4, "{parts}");
        for figure in &row[1..] {
            assert!(parts.contains(figure), "{parts}");
        }
        assert!(
            parts.lines().all(|line| line.chars().count() <= 20),
            "{parts}"
        );
    }
}
