"""The ways in which people say a number, a time, a duration or a distance.

Every function lists ways of saying one value, written in lower case apart from AM and PM. Over all values that the
generator draws, no text of one function means two things.
"""

from __future__ import annotations

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MINUTES = {5: "five", 10: "ten", 15: "quarter", 20: "twenty", 25: "twenty-five"}
_MORNING = range(5, 12)


# Numbers --------------------------------------------------------------------------------------------------------------


def words(number: int) -> str:
    """A whole number from 0 to 99,999 in British words: "one hundred and two"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[rest]}" if rest else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, unit)
    joint = " and " if rest < 100 else " "
    return f"{words(count)} {name}" + (f"{joint}{words(rest)}" if rest else "")


def number(value: float) -> list[str]:
    """In digits and in words: 3.5 is "3.5", "three point five", "three and a half", "3 and a half"."""
    whole, digits = int(value), f"{value:g}"
    if value == whole:
        return [digits, words(whole)]
    spelt = " ".join(_ONES[int(digit)] for digit in digits.partition(".")[2])
    said = [digits, f"{words(whole)} point {spelt}"]
    return [*said, f"{words(whole)} and a half", f"{whole} and a half"] if value - whole == 0.5 and whole else said


def thousands(value: int) -> list[str]:
    """A multiple of 500 from 1,000 on: "7500", "7,500", "7.5k", "seven and a half thousand"."""
    said = [str(value), f"{value:,}", f"{value / 1000:g}k", words(value)]
    return said if value % 1000 == 0 else [*said, f"{words(value // 1000)} and a half thousand"]


def measure(value: float, *units: str) -> list[str]:
    """A number with any of these units: "5 km", "5km", "five km"; a unit of one letter only follows digits."""
    said = [f"{text} {unit}" for unit in units for text in (number(value) if len(unit) > 1 else [f"{value:g}"])]
    return said + [f"{value:g}{unit}" for unit in units if len(unit) <= 2]


# Time of day ----------------------------------------------------------------------------------------------------------


def half_day(hour: int, minute: int) -> list[str]:
    """A time as it is said where the half of the day is known: 18:30 is "6:30", "half past six", "six thirty".

    "Half six" is left out: it is half past six to some and half past five to others.
    """
    named, following = hour % 12 or 12, (hour + 1) % 12 or 12
    if minute == 0:
        return [f"{named}", f"{named}:00", words(named), f"{words(named)} o'clock"]
    said = [f"{named}:{minute:02d}", f"{named}.{minute:02d}"]
    if minute % 5 == 0:
        said.append(f"{words(named)} {words(minute) if minute >= 10 else f'oh {words(minute)}'}")
        if minute == 30:
            said.append(f"half past {words(named)}")
        elif minute < 30:
            said.append(f"{_MINUTES[minute]} past {words(named)}")
        else:
            said.append(f"{_MINUTES[60 - minute]} to {words(following)}")
    return said


def _parts(hour: int) -> list[str]:
    """What is said of an hour's part of the day."""
    if 1 <= hour < 12:
        return ["in the morning"]
    if 12 <= hour < 18:
        return ["in the afternoon"]
    evening = ["in the evening"] if 18 <= hour < 22 else []
    return evening if 18 <= hour < 21 else [*evening, "at night"]


def clock(hour: int, minute: int) -> list[str]:
    """A time as it is said where nothing else tells the half of the day.

    From five to twelve in the morning the 12-hour clock is used without more, so that "half past six" is 06:30; what
    would then be said "to twelve" is left out.
    """
    said = clear_clock(hour, minute)
    return said if hour not in _MORNING else said + [t for t in half_day(hour, minute) if not t.endswith("to twelve")]


def clear_clock(hour: int, minute: int) -> list[str]:
    """A time with all four digits or with its half of the day: "18:30", "0630", "7 pm", "ten to six in the morning"."""
    half = "am" if hour < 12 else "pm"
    named = f"{hour % 12 or 12}" + (f":{minute:02d}" if minute else "")
    said = [f"{hour:02d}:{minute:02d}", f"{hour:02d}{minute:02d}"]
    said += [f"{named} {half}", f"{named}{half}", f"{named} {half.upper()}", f"{named} {half[0]}.m."]
    if (hour % 12, minute) == (0, 0):
        return said + (["noon", "midday"] if hour else ["midnight"])
    # In digits the part of the day would be unusual, and "six in the morning" says as much as "six o'clock".
    spelt = [text for text in half_day(hour, minute) if not text[0].isdigit() and "o'clock" not in text]
    return said + [f"{text} {part}" for text in spelt for part in _parts(hour)]


def weekdays(days: tuple[str, ...]) -> list[str]:
    """Days of the week, in the week's order, on which something repeats: "every Monday", "at weekends", "Mon-Fri"."""
    names = [_DAY_NAMES[DAYS.index(day)] for day in days]
    if days == DAYS:
        return ["every day", "daily", "seven days a week", "every single day"]
    said = []
    if days == DAYS[:5]:
        said = ["every weekday", "on weekdays", "Monday to Friday", "Mon-Fri", "Monday through Friday"]
    elif days == DAYS[5:]:
        said = ["at weekends", "on weekends", "every weekend", "every Saturday and Sunday", "Saturdays and Sundays"]
    elif len(days) > 2 and DAYS.index(days[-1]) - DAYS.index(days[0]) == len(days) - 1:
        said = [f"{names[0]} to {names[-1]}", f"every {names[0]} to {names[-1]}", f"{names[0][:3]}-{names[-1][:3]}"]
    if len(days) > 3:
        return said
    short, plural = [name[:3] for name in names], [f"{name}s" for name in names]
    return [*said, f"every {_and(names)}", f"on {_and(plural)}", f"every {_and(short)}"]


def _and(texts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


# Spans of time --------------------------------------------------------------------------------------------------------

_FRACTIONS = {
    15: ["a quarter of an hour"],
    30: ["half an hour", "a half hour"],
    45: ["three quarters of an hour"],
    60: ["an hour", "one hour", "1 hour", "1 h", "1 hr"],
    75: ["an hour and a quarter"],
    90: ["an hour and a half", "one and a half hours", "1.5 hours", "1.5 h"],
    105: ["an hour and three quarters"],
}


def duration(minutes: int) -> list[str]:
    """From 2 minutes on: "45 min", "three quarters of an hour", "1h 20m", "an hour and twenty minutes"."""
    hours, rest = divmod(minutes, 60)
    said = [f"{minutes} min", f"{minutes}min", f"{minutes} mins", f"{minutes} minutes"]
    said += [f"{words(minutes)} minutes"] if minutes <= 120 else []
    said += _FRACTIONS.get(minutes, [])
    if hours >= 2 and rest in (0, 30):
        said += measure(minutes / 60, "hours", "hrs", "h")
    if hours and rest > 1:
        full = "an hour" if hours == 1 else f"{words(hours)} hours"
        said += [f"{hours}h {rest}m", f"{hours} h {rest} min"]
        said += [f"{full} and {words(rest)} minutes", f"{full} {words(rest)}"]
    return said


def duration_before(minutes: int) -> list[str]:
    """A duration in front of its noun: "45-minute", "forty-five minute", "half-hour"."""
    said = [f"{minutes}-minute", f"{minutes} minute", f"{minutes} min", f"{words(minutes)} minute"]
    whole = [f"{minutes // 60}-hour", f"{words(minutes // 60)}-hour"] if minutes % 60 == 0 else []
    return said + whole + {30: ["half-hour"], 60: ["hour-long"]}.get(minutes, [])


def span(days: int) -> list[str]:
    """From 2 days on: "ten days", "2 weeks", "a fortnight"."""
    said = [f"{days} days"] + ([f"{words(days)} days"] if days <= 31 else [])
    if days == 7:
        said += ["a week", "one week"]
    elif days % 7 == 0:
        said += [f"{days // 7} weeks", f"{words(days // 7)} weeks"]
    return said + (["a fortnight"] if days == 14 else [])


def past(days: int) -> list[str]:
    """What follows "the": "past week", "last ten days", "previous 2 weeks".

    "Last week" is left out: it may be the week that ended on Sunday.
    """
    if days == 1:
        return ["last 24 hours", "past 24 hours", "last twenty-four hours"]
    counted = [text for text in span(days) if text[:2] not in ("a ", "on")]
    said = [f"{word} {text}" for text in counted for word in ("last", "past", "previous")]
    return said + {7: ["past week"] * 3, 14: ["last fortnight", "past fortnight"]}.get(days, [])


def span_before(days: int) -> list[str]:
    """A span in front of its noun: "7-day", "ten-day", "two-week"."""
    said = [f"{days}-day", f"{days} day"] + ([f"{words(days)}-day"] if days <= 31 else [])
    return said if days % 7 else [*said, f"{days // 7}-week", f"{words(days // 7)}-week"]


# Distances and weights ------------------------------------------------------------------------------------------------

_DOZENS = {6: "half a dozen", 12: "a dozen"}


def kilometres(metres: int) -> list[str]:
    """Multiples of 50 metres: "5k", "3.2 km", "three and a half kilometres"; under 3 km also "800 metres"."""
    value = metres / 1000
    said = [*measure(value, "km", "k", "kilometres"), f"{value:g} kilometers", f"{value:g}K", f"{value:g} kms"]
    if value in _DOZENS:
        said += [f"{_DOZENS[int(value)]} km", f"{_DOZENS[int(value)]} kilometres"]
    if value == 1:
        return ["1 km", "1km", "1k", "one kilometre", "a kilometre", "one km", "1000 metres", "1000 m"]
    return said if metres >= 3000 else [*said, f"{metres} metres", f"{metres} m", f"{metres}m", f"{metres} meters"]


def kilometres_before(metres: int) -> list[str]:
    """A distance in front of its noun: "5k", "3.2 km", "10-kilometre"; under 3 km also "800 metre"."""
    value = f"{metres / 1000:g}"
    said = [f"{value}k", f"{value} k", f"{value} km", f"{value}km", f"{value}-kilometre"]
    return said if metres >= 3000 else [*said, f"{metres} m", f"{metres} metre", f"{metres}-metre"]


def kilograms(value: float) -> list[str]:
    """With its unit: "81.4 kg", "eighty-one and a half kilos"."""
    return measure(value, "kg", "kilos", "kilograms")
