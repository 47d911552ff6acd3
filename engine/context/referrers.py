"""Where a visit comes from: classes of referrers, and campaigns from the parameters of the page's address."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

URL_BYTES_MAX = 4_096
CAMPAIGN_BYTES_MAX = 64

# The name of a site before its top level; a host belongs to the site or to something below it.
_SEARCH = frozenset({
    "google", "bing", "duckduckgo", "yahoo", "ecosia", "baidu", "yandex", "qwant", "startpage", "brave", "naver", "seznam", "sogou",
    "ask", "aol",
})  # fmt: skip
_SOCIAL = frozenset({
    "facebook", "fb", "instagram", "twitter", "x", "t", "tiktok", "pinterest", "pin", "reddit", "linkedin", "lnkd", "youtube", "youtu",
    "snapchat", "whatsapp", "telegram", "threads", "vk", "weibo", "tumblr", "discord", "mastodon", "bsky",
})  # fmt: skip
_MAIL_HOSTS = ("mail.", "outlook.", "webmail.", "email.")
_MEDIA = {
    "cpc": "paid_search", "ppc": "paid_search", "paidsearch": "paid_search", "paid_search": "paid_search", "sem": "paid_search",
    "email": "email", "e-mail": "email", "newsletter": "email",
    "social": "social", "paid_social": "paid_social", "paidsocial": "paid_social", "social-paid": "paid_social",
    "display": "display", "banner": "display", "cpm": "display",
    "affiliate": "affiliate", "referral": "referral", "organic": "organic", "push": "push", "sms": "sms",
}  # fmt: skip
_CLICK_IDS = {"gclid": "paid_search", "msclkid": "paid_search", "fbclid": "social", "ttclid": "paid_social"}


def referrer_class(url: str, own_hosts: Collection[str]) -> str:
    """Return direct (no address), internal, email, search, social or other."""
    if not url.strip():
        return "direct"
    host = _host(url)
    if not host:
        return "other"
    if any(host == own or host.endswith("." + own) for own in own_hosts):
        return "internal"
    if host.startswith(_MAIL_HOSTS) or host == "com.google.android.gm":  # an app's name stands where a host does
        return "email"
    site = _site(host)
    return "search" if site in _SEARCH else "social" if site in _SOCIAL else "other"


def campaign_of(url: str) -> tuple[str, str]:
    """Return (campaign, medium) of a page's address, each empty where it does not say."""
    try:
        query = parse_qs(urlsplit(url[:URL_BYTES_MAX]).query, max_num_fields=100)
    except ValueError:
        return "", ""
    campaign = query.get("utm_campaign", [""])[0].strip().lower()[:CAMPAIGN_BYTES_MAX]
    said = query.get("utm_medium", [""])[0].strip().lower()
    if said:
        return campaign, _MEDIA.get(said, "other")
    return campaign, next((medium for name, medium in _CLICK_IDS.items() if name in query), "")


def _host(url: str) -> str:
    try:
        return (urlsplit(url[:URL_BYTES_MAX].strip()).hostname or "").lower().removeprefix("www.")
    except ValueError:
        return ""


def _site(host: str) -> str:
    """Return the name of the site: what stands before the top level, which may be of two parts, such as co.uk."""
    parts = host.split(".")
    if len(parts) < 2:
        return ""
    short = len(parts) > 2 and len(parts[-1]) == 2 and parts[-2] in ("co", "com", "org", "net", "ac")
    return parts[-3] if short else parts[-2]
