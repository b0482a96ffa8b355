"""The platforms that documents come from. A platform is a module here and its line in `CRAWLERS`."""

from __future__ import annotations

from ingestion.crawlers import article, export, files, repository
from ingestion.drafts import Crawler

# In this order: the first that accepts a source crawls it; `files` takes whatever is left.
CRAWLERS = (
    Crawler("repository", repository.accepts, repository.crawl),
    Crawler("article", article.accepts, article.crawl),
    Crawler("export", export.accepts, export.crawl),
    Crawler("files", files.accepts, files.crawl),
)


def crawler_of(source: str) -> Crawler:
    """The first crawler that accepts the source."""
    return next(crawler for crawler in CRAWLERS if crawler.accepts(source))
