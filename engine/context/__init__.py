"""Context: what a request says about itself, made into what decisions and features can use.

Callers send what they have; what they say stands, and the rest is derived. Raw values are used and dropped: nothing of them is
stored, logged or part of a context cell.

| sent | derived |
|---|---|
| `user_agent` | `device` (desktop, mobile, tablet, tv, bot, other), `os`, `browser` |
| `ip` | `country` (ISO 3166), `region`, `city`, and the time zone, from the user's MaxMind database |
| `time_zone` (IANA) | the local time of the next row; else the location's zone, else the shop's |
| the moment | `daypart`, `hour`, `weekday`, `weekend`, `season` |
| `referrer_url` | `referrer`: search, social, email, internal, other; direct where it is sent empty |
| `page_url` | `campaign`, `campaign_medium` from UTM parameters and click ids |
| `country`, `region`, `city` | `weather`, from a provider that decisions never wait for |

What cannot be read is left out, as if it had not been sent: a visitor's browser may send anything.
"""

from tailorbird.engine.context.deriver import RAW, USER_AGENT, ContextDeriver, Contexts
from tailorbird.engine.context.texts import check_context
from tailorbird.engine.context.weather import Weather, WeatherProvider

__all__ = ["RAW", "USER_AGENT", "ContextDeriver", "Contexts", "Weather", "WeatherProvider", "check_context"]
