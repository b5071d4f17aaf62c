"""Make the Word, Excel and PDF files of `tarnfell/`; the same bytes every time.

Nothing else needs this script or its libraries.
"""

# /// script
# dependencies = ["python-docx", "openpyxl", "reportlab"]
# ///

from __future__ import annotations

import zipfile
from datetime import datetime
from pathlib import Path

import openpyxl
from docx import Document
from openpyxl.styles import Font
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import cm
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

FOLDER = Path(__file__).parent / "tarnfell"
MADE = datetime(2031, 4, 1)  # noqa: DTZ001 - office formats hold local times

HANDBOOK: list[tuple[int, str] | str | list[list[str]]] = [
    (0, "Employee handbook"),
    "Welcome to Tarnfell Instruments. We build weather stations that people rely on: mountain "
    "rescuers, ferry captains, fruit growers. This handbook says how we work together. It is "
    "reviewed every January; suggestions go to handbook@tarnfell.example.",
    (1, "Working time"),
    (2, "Core hours and flexible time"),
    "A full week has 38 hours. Be reachable between 10:00 and 15:00; everything else is yours to "
    "arrange with your team. Hours above 38 go to your time account, which may hold at most 60 "
    "hours. Time off from the account needs one day's notice.",
    (2, "Working from home"),
    "You may work from home up to three days a week. The calibration laboratory and the workshop "
    "are exceptions, because their work needs the building. The company pays for a desk and a "
    "chair once, up to 600 euros.",
    (1, "Holidays and leave"),
    "Everybody has 28 days of holiday a year, plus the public holidays of Orrinmouth. Up to five "
    "days may be carried into the next year and must be taken by the end of March. Parental "
    "leave is 26 weeks at full pay for every parent, whoever gave birth. For the illness of a "
    "child there are ten paid days a year.",
    (1, "Travel and expenses"),
    "Take the train for journeys of less than six hours. Flights need the approval of your team "
    "lead. Receipts are due within 30 days; what is handed in later is paid only in "
    "exceptional cases.",
    (2, "Daily allowances"),
    [
        ["Country", "Full day", "Day of arrival or departure", "Hotel, at most"],
        ["Austria", "45 EUR", "30 EUR", "130 EUR"],
        ["Bulgaria", "32 EUR", "21 EUR", "95 EUR"],
        ["China", "48 EUR", "32 EUR", "120 EUR"],
        ["Norway", "75 EUR", "50 EUR", "180 EUR"],
        ["Scotland", "52 EUR", "35 EUR", "140 EUR"],
    ],
    (1, "Safety in the field"),
    "Nobody climbs a mast alone. A mast of more than six metres needs a second person on the "
    "ground, a helmet and a full-body harness that was inspected within the last twelve months. "
    "Work on masts stops when gusts exceed 40 km/h or when thunder is heard; wait 30 minutes "
    "after the last thunder.",
    "On ridges above 1,500 m take the satellite messenger (shelf 4 in the store) and send the "
    "planned time of return to the office before you leave the road.",
    (1, "Learning"),
    "Each of us has a budget of 1,500 euros and five days a year for courses and conferences. "
    "Books are bought without asking. Whoever visits a conference tells the others about it at "
    "a Friday lunch.",
    (1, "Security"),
    "Passwords live in the password manager and nowhere else. Laptops are encrypted and locked "
    "when you leave them. Report a lost device within the hour, at any time of day, to "
    "security@tarnfell.example: nobody is blamed for reporting too early.",
]

PRICES: dict[str, list[list[object]]] = {
    "Stations": [
        ["Article", "Name", "Price EUR", "Delivery weeks", "Warranty months", "Remarks"],
        ["WS-100", "School and garden station", 890, 1, 24, "wind, rain, temperature, humidity"],
        ["WS-300", "Professional station", 4350, 3, 36, "ultrasonic wind, heated pressure port"],
        ["WS-300M", "Professional station, marine", 5980, 5, 36, "gyro mount, salt-proof coating"],
        ["WS-300A", "Professional station, aviation", 7420, 8, 36, "two anemometers, certificate"],
    ],
    "Sensors": [
        ["Article", "Name", "Price EUR", "Range", "Accuracy", "Calibrate every (months)"],
        ["SN-201", "Barometer", 410, "300-1100 hPa", "±0.15 hPa", 24],
        ["SN-202", "Ultrasonic anemometer", 1290, "0-75 m/s", "±2 %", 36],
        ["SN-203", "Tipping bucket rain gauge", 335, "0-400 mm/h", "±3 %", 12],
        ["SN-204", "Temperature and humidity probe", 260, "-45 to +60 °C", "±0.1 °C", 12],
        ["SN-205", "Leaf wetness sensor", 145, "0-100 %", "±5 %", 24],
        ["SN-206", "Pyranometer", 720, "0-2000 W/m²", "±2 %", 24],
    ],
    "Spare parts and services": [
        ["Article", "Name", "Price EUR", "Unit", "Remarks"],
        ["AC-101", "Lead battery 12 V, 26 Ah", 96, "piece", "change every 4 years"],
        ["AC-104", "Solar panel 20 W", 129, "piece", "with bracket"],
        ["AC-110", "Mast, 10 m, foldable", 1180, "piece", "two people can raise it"],
        ["AC-112", "Lightning rod with 15 m cable", 210, "set", "needed for the warranty"],
        ["AC-118", "Bird spikes for anemometers", 18, "set of 6", "free with every SN-202"],
        ["AC-125", "Dust filter", 24, "set of 4", "for deserts and quarries"],
        ["SV-010", "Calibration of one sensor", 85, "sensor", "5 working days, certificate"],
        ["SV-020", "Yearly service on site", 390, "station", "travel within 200 km included"],
        ["SV-030", "Portal and SIM card", 12, "month", "first year free"],
    ],
}

MANUAL: list[list[str | list[list[str]]]] = [
    [
        "# WS-300 weather station: manual",
        "This manual is for the people who mount, run and service the WS-300. It covers firmware "
        "4.0 and later. Keep it with the station; the case has a pocket for it inside the lid.",
        "# 1 What is in the box",
        "Logger with mobile modem, ultrasonic anemometer SN-202, rain gauge SN-203, temperature "
        "and humidity probe SN-204 in its radiation shield, barometer SN-201 with heated static "
        "port, solar panel 20 W, lead battery 12 V 26 Ah, bird spikes, cables of 10 m. The mast "
        "is ordered separately.",
        "# 2 Technical data",
        [
            ["Supply", "20 W solar panel, 12 V lead battery; 9 mA mean current"],
            ["Autonomy without sun", "21 days"],
            ["Memory", "readings of 90 days at one-minute interval"],
            ["Operating range", "-40 to +60 °C, 0 to 100 % humidity"],
            ["Protection", "IP67; wind loads up to 75 m/s"],
            ["Transmission", "LTE-M or NB-IoT, every 30 s to 24 h (tx_interval_s)"],
        ],
    ],
    [
        "# 3 Choosing the place",
        "The anemometer belongs 10 m above the ground, at a distance from obstacles of at least "
        "ten times their height. The temperature probe belongs 2 m above short grass, never above "
        "asphalt. Keep the rain gauge level and at least twice as far from an obstacle as the "
        "obstacle is high.",
        "# 4 Mounting the mast",
        "Dig a foundation of 60 x 60 x 80 cm and let the concrete harden for seven days. Raise the "
        "foldable mast with two people. Tighten the guy ropes until they ring when struck, and "
        "again after two weeks. Mount the lightning rod: without it, damage by lightning is not "
        "covered by the warranty.",
        "# 5 First start",
        "Connect the battery before the solar panel. The status light turns blue while the "
        "station looks for a network, which takes up to four minutes, and green when the first "
        "readings have arrived in the portal. Enter the serial number from the lid in the portal "
        "under Add station.",
    ],
    [
        "# 6 Calibration",
        "Every sensor comes with a certificate. The rain gauge and the humidity probe are "
        "calibrated every 12 months, the barometer every 24 and the anemometer every 36. Send "
        "the sensor in, or use the field kit.",
        "Field calibration of the rain gauge: pour 653 ml of water through the 0.5 mm nozzle "
        "within 30 minutes. The counter must show between 97 and 103 tips. Turn the adjusting "
        "screw by a quarter to change the count by about two tips.",
        "Field calibration of the barometer: place a reference instrument at the height of the "
        "static port, wait ten minutes and enter the difference in hPa with the command "
        "set baro_offset. Offsets beyond 1.5 hPa mean that the sensor must be replaced.",
        "# 7 Maintenance",
        "Twice a year clean the rain gauge's sieve and wipe the radiation shield. Once a year "
        "check the guy ropes and the battery: below 12.0 V at rest it should be replaced. Do not "
        "oil the bearings of the tipping bucket.",
    ],
    [
        "# 8 Error codes",
        [
            ["Code", "Meaning", "What to do"],
            ["E12", "No network for 24 hours", "Check antenna and SIM card; readings are kept"],
            ["E31", "Ultrasonic echoes missing (> 20 %)", "Remove nests and ice; mount AC-118"],
            ["E42", "Tipping bucket does not move", "Clean the bucket, level the gauge"],
            ["E55", "Battery below 11.1 V", "Charge; the station measures but does not send"],
            ["E67", "Pressure port heater draws no current", "Check fuse F3, then the heater"],
            ["E90", "Firmware image with a wrong signature", "Download again; call support"],
            ["W17", "Pressure differs from neighbours", "Look for ice in the static port"],
        ],
        "An error is sent once when it appears and once when it is gone. The command selftest on "
        "the service port (115200 baud) lists all that are present.",
    ],
    [
        "# 9 Warranty",
        "The station is guaranteed for 36 months from the day of installation, not of purchase; "
        "sensors for 24 months and the battery for 12. Register the installation in the portal "
        "within 60 days, otherwise the date of purchase counts.",
        "The warranty does not cover damage by lightning without a lightning rod, by power "
        "supplies of other makers, or by opening the sealed housing of the barometer. We answer "
        "a claim within two working days and pay the freight both ways.",
        "# 10 Disposal",
        "Lead batteries must not go into household waste. Send the whole station back at the end "
        "of its life: we take it apart, reuse the housing and recycle the rest, free of charge.",
    ],
]


def make_docx(path: Path) -> None:
    """Headings, paragraphs, one table."""
    document = Document()
    for part in HANDBOOK:
        if isinstance(part, str):
            document.add_paragraph(part)
        elif isinstance(part, tuple):
            document.add_heading(part[1], part[0])
        else:
            table = document.add_table(rows=0, cols=len(part[0]), style="Table Grid")
            for row in part:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
    document.core_properties.author = "Tarnfell Instruments"
    document.core_properties.created = document.core_properties.modified = MADE
    document.save(path)
    _without_times(path)


def make_xlsx(path: Path) -> None:
    """A sheet per group of articles, the header in the first row."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in PRICES.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        for cell in sheet[1]:
            cell.font = Font(bold=True)
        sheet.freeze_panes = "A2"
    book.properties.creator = "Tarnfell Instruments"
    book.properties.created = MADE
    book.save(path)
    _without_times(path)


def make_pdf(path: Path) -> None:
    """A chapter or two per page."""
    styles = getSampleStyleSheet()
    story: list[object] = []
    for number, page in enumerate(MANUAL):
        if number:
            story.append(PageBreak())
        for part in page:
            if isinstance(part, list):
                cells = [[Paragraph(cell, styles["BodyText"]) for cell in row] for row in part]
                table = Table(cells, hAlign="LEFT")
                table.setStyle(TableStyle([("GRID", (0, 0), (-1, -1), 0.5, "grey")]))
                story.append(table)
            elif part.startswith("# "):
                story.append(Paragraph(part[2:], styles["Heading1"]))
            else:
                story.append(Paragraph(part, styles["BodyText"]))
            story.append(Spacer(1, 0.2 * cm))
    template = SimpleDocTemplate(
        str(path), pagesize=A4, title="WS-300 manual", author="Tarnfell Instruments", invariant=1
    )
    template.build(story)


def _without_times(path: Path) -> None:
    """Rewrite a zip file so that it does not hold the moment it was made."""
    with zipfile.ZipFile(path) as old:
        files = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in files:
            if name == "docProps/core.xml":
                data = _fixed_modified(data)
            new.writestr(zipfile.ZipInfo(name, (2031, 4, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def _fixed_modified(core: bytes) -> bytes:
    start = core.index(b">", core.index(b"<dcterms:modified")) + 1
    end = core.index(b"</dcterms:modified>")
    return core[:start] + MADE.isoformat().encode() + b"Z" + core[end:]


if __name__ == "__main__":
    make_docx(FOLDER / "employee-handbook.docx")
    make_xlsx(FOLDER / "price-list.xlsx")
    make_pdf(FOLDER / "ws300-manual.pdf")
