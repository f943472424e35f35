// Selects over the columns of the table of mechanisms; rows that do not fit them all are hidden.
const COLUMNS = ["kind", "cost", "keeps weights", "kernel", "map"];

function addFilters(box) {
  const table = box.querySelector("table");
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const rows = [...table.tBodies[0].rows];
  const text = (row, column) => row.cells[titles.indexOf(column)].textContent.trim();
  const filters = document.createElement("div");
  const count = document.createElement("p");
  const selects = COLUMNS.map((column) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.add(new Option("any", ""));
    [...new Set(rows.map((row) => text(row, column)))].sort().forEach((value) => select.add(new Option(value)));
    select.addEventListener("change", update);
    label.append(column, select);
    filters.append(label);
    return select;
  });

  function update() {
    rows.forEach((row) => {
      row.hidden = selects.some((select, at) => select.value && select.value !== text(row, COLUMNS[at]));
    });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }

  filters.className = "mechanism-filters";
  count.setAttribute("aria-live", "polite");
  box.prepend(filters, count);
  update();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".mechanisms").forEach(addFilters));
